from mmrec.cli import main

main()
