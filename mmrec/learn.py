"""The stations of training: fit, evaluate, export, register, promote. Run in a process of their own."""
