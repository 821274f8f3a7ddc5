/* Faults at a file-system call: a library for LD_PRELOAD.

In: a control file, named by FAULTS_CONTROL, that every process of a tree maps and shares (preload.py writes it).
Out: calls below the control's prefix are counted, and the one that was chosen fails, is cut short, or is the last thing
its process does. In trace mode every call that succeeded is written down in its order, with what it wrote.
Trade-off: calls that change something are seen when they go through the C library, as those of Python, Rust, C++ and
Java do; a raw system call is not. preload.py's self-test and a floor on the counted calls are what tell. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { EIO_ONCE = 1, FULL = 2, SHORT = 3, KILL_BEFORE = 4, KILL_AFTER = 5, TORN = 6, LIMIT = 7, TRACE = 8 };

/* the same layout as preload.py's struct */
struct control {
  int32_t armed, mode;
  int64_t at, calls, fired, bytes_left;
  char what[512], prefix[1024], trace[1024];
};

static struct control *ctl;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER; /* of a trace: one call at a time */

__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("FAULTS_CONTROL");
  if (!name) return;
  int fd = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC);
  if (fd < 0) _exit(113);
  void *shared = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (shared == MAP_FAILED) _exit(113);
  ctl = shared;
  close(fd);
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* the absolute path of what a call names */
static const char *of_fd(int fd, char *out, size_t room) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, out, room - 1);
  out[n < 0 ? 0 : n] = 0;
  return out;
}

static const char *of_path(int dir, const char *path, char *out, size_t room) {
  if (!path) path = "";
  if (path[0] == '/') {
    snprintf(out, room, "%s", path);
    return out;
  }
  char base[2048];
  if (dir == AT_FDCWD) {
    if (!getcwd(base, sizeof base)) base[0] = 0;
  } else {
    of_fd(dir, base, sizeof base);
  }
  snprintf(out, room, "%s/%s", base, path);
  return out;
}

static int below(const char *path) {
  size_t n = strlen(ctl->prefix);
  return n && path && !strncmp(path, ctl->prefix, n) && (path[n] == '/' || path[n] == 0);
}

/* What becomes of a call: GO, GO and DIE, CUT (a write: half of it), CUT and DIE; -1 with errno where it fails. */
enum { GO = 0, DIE = 1, CUT = 2 };

static int gate(const char *op, const char *a, const char *b, int grows, int writes) {
  int mode = ctl->mode;
  if (!(below(a) || below(b)) || (mode == SHORT && !writes)) return GO; /* only a write can be short */
  int64_t n = __atomic_add_fetch(&ctl->calls, 1, __ATOMIC_SEQ_CST);
  if (mode == LIMIT || mode == TRACE) return GO;
  if (n > ctl->at) {
    if (mode == FULL && grows) {
      errno = ENOSPC;
      return -1;
    }
    return GO;
  }
  if (n < ctl->at) return GO;
  snprintf(ctl->what, sizeof ctl->what, "%s %s", op, below(a) ? a + strlen(ctl->prefix) : b + strlen(ctl->prefix));
  __atomic_store_n(&ctl->fired, 1, __ATOMIC_SEQ_CST);
  switch (mode) {
    case EIO_ONCE: errno = EIO; return -1;
    case FULL: if (writes) return CUT; if (!grows) return GO; errno = ENOSPC; return -1;
    case SHORT: return CUT;
    case KILL_BEFORE: die(); return GO;
    case KILL_AFTER: return DIE;
    case TORN: return writes ? CUT | DIE : DIE;
  }
  return GO;
}

/* one record of a trace: the call, its paths, an offset, a length, and so many bytes */
static void note(const char *op, const char *a, const char *b, int64_t offset, const struct iovec *io, int count, int64_t length) {
  if (!(below(a) || below(b))) return;
  int fd = syscall(SYS_openat, AT_FDCWD, ctl->trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) abort();
  char head[4608];
  int n = snprintf(head, sizeof head, "%s\t%s\t%s\t%lld\t%lld\n", op, a, b ? b : "", (long long)offset, (long long)length);
  if (syscall(SYS_write, fd, head, n) != n) abort();
  for (int i = 0; i < count && length > 0; i++) {
    int64_t part = (int64_t)io[i].iov_len < length ? (int64_t)io[i].iov_len : length;
    if (syscall(SYS_write, fd, io[i].iov_base, part) != part) abort();
    length -= part;
  }
  close(fd);
}

#define ARMED (ctl && ctl->armed)
#define TRACED (ctl->mode == TRACE)

#define AROUND(op, a, b, grows, call)                        \
  int act = gate(op, a, b, grows, 0);                        \
  if (act < 0) return -1;                                    \
  if (TRACED) pthread_mutex_lock(&order);                    \
  long made = call;                                          \
  int kept = errno;                                          \
  if (TRACED) {                                              \
    if (made >= 0) note(op, a, b, 0, NULL, 0, 0);            \
    pthread_mutex_unlock(&order);                            \
  }                                                          \
  if (act & DIE) die();                                      \
  errno = kept;                                              \
  return made

/* opening: counted where it can create or change */
static int opened(int dir, const char *path, int flags, mode_t mode) {
  if (!ARMED || !(flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY))
    return syscall(SYS_openat, dir, path, flags, mode);
  char a[4096];
  of_path(dir, path, a, sizeof a);
  struct stat there;
  int fresh = (flags & O_CREAT) && stat(a, &there) != 0;
  const char *op = fresh ? "create" : flags & O_TRUNC ? "empty" : "open";
  AROUND(op, a, NULL, fresh, syscall(SYS_openat, dir, path, flags, mode));
}

#define MODE_OF(flags)                                       \
  mode_t mode = 0;                                           \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {                   \
    va_list more;                                            \
    va_start(more, flags);                                   \
    mode = va_arg(more, mode_t);                             \
    va_end(more);                                            \
  }

int open(const char *path, int flags, ...) { MODE_OF(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { MODE_OF(flags) return opened(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { MODE_OF(flags) return opened(dir, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* writing */
static ssize_t raw(int fd, const struct iovec *io, int count, int64_t offset) {
  return offset < 0 ? syscall(SYS_writev, fd, io, count) : syscall(SYS_pwritev, fd, io, count, (long)offset, 0L);
}

static ssize_t put(const char *op, int fd, const struct iovec *io, int count, int64_t offset) {
  if (!ARMED) return raw(fd, io, count, offset);
  char a[4096];
  of_fd(fd, a, sizeof a);
  if (!below(a)) return raw(fd, io, count, offset);
  size_t total = 0;
  for (int i = 0; i < count; i++) total += io[i].iov_len;
  int act = gate(op, a, NULL, 1, 1);
  if (act < 0) return -1;
  size_t allowed = act & CUT ? total / 2 : total;
  if (ctl->mode == LIMIT) {
    int64_t left = __atomic_sub_fetch(&ctl->bytes_left, (int64_t)total, __ATOMIC_SEQ_CST) + (int64_t)total;
    if (left < (int64_t)total) { /* as a file system does: what still fits, then an error */
      allowed = left > 0 ? left : 0;
      __atomic_add_fetch(&ctl->bytes_left, (int64_t)(total - allowed), __ATOMIC_SEQ_CST);
      __atomic_store_n(&ctl->fired, 1, __ATOMIC_SEQ_CST);
    }
  }
  if (allowed == 0 && total > 0 && !(act & DIE)) {
    errno = ENOSPC;
    return -1;
  }
  if (TRACED) pthread_mutex_lock(&order);
  int64_t at = offset;
  if (TRACED && offset < 0) {
    struct stat there;
    at = fcntl(fd, F_GETFL) & O_APPEND ? (fstat(fd, &there), (int64_t)there.st_size) : lseek(fd, 0, SEEK_CUR);
  }
  ssize_t made;
  if (allowed == total) {
    made = raw(fd, io, count, offset);
  } else {
    char *flat = malloc(total + 1), *to = flat;
    for (int i = 0; i < count; to += io[i].iov_len, i++) memcpy(to, io[i].iov_base, io[i].iov_len);
    struct iovec part = {flat, allowed};
    made = raw(fd, &part, 1, offset);
    free(flat);
  }
  int kept = errno;
  if (TRACED) {
    if (made >= 0) note("write", a, NULL, at, io, count, made);
    pthread_mutex_unlock(&order);
  }
  if (act & DIE) die();
  errno = kept;
  return made;
}

ssize_t write(int fd, const void *data, size_t n) {
  struct iovec io = {(void *)data, n};
  return ARMED ? put("write", fd, &io, 1, -1) : syscall(SYS_write, fd, data, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
  struct iovec io = {(void *)data, n};
  return put("pwrite", fd, &io, 1, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) { return pwrite(fd, data, n, offset); }
ssize_t writev(int fd, const struct iovec *io, int count) { return put("writev", fd, io, count, -1); }
ssize_t pwritev(int fd, const struct iovec *io, int count, off_t offset) { return put("pwritev", fd, io, count, offset); }
ssize_t pwritev64(int fd, const struct iovec *io, int count, off64_t offset) { return put("pwritev", fd, io, count, offset); }

/* copying within the kernel: refused as a file system without it does, so that callers read and write */
ssize_t copy_file_range(int in, off64_t *at, int out, off64_t *to, size_t n, unsigned flags) {
  char a[4096];
  if (ARMED && below(of_fd(out, a, sizeof a))) {
    errno = EXDEV;
    return -1;
  }
  return syscall(SYS_copy_file_range, in, at, out, to, n, flags);
}
ssize_t sendfile(int out, int in, off_t *at, size_t n) {
  char a[4096];
  if (ARMED && below(of_fd(out, a, sizeof a))) {
    errno = EINVAL;
    return -1;
  }
  return syscall(SYS_sendfile, out, in, at, n);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) { return sendfile(out, in, at, n); }

/* names */
#define TWO(from, old, to, new)                              \
  char a[4096], b[4096];                                     \
  of_path(from, old, a, sizeof a);                           \
  of_path(to, new, b, sizeof b)

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  if (!ARMED) return syscall(SYS_renameat2, from, old, to, new, flags);
  TWO(from, old, to, new);
  AROUND("rename", a, b, 1, syscall(SYS_renameat2, from, old, to, new, flags));
}
int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
  if (!ARMED) return syscall(SYS_linkat, from, old, to, new, flags);
  TWO(from, old, to, new);
  AROUND("link", a, b, 1, syscall(SYS_linkat, from, old, to, new, flags));
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

static int removed(const char *op, int dir, const char *path, int flags) {
  if (!ARMED) return syscall(SYS_unlinkat, dir, path, flags);
  char a[4096];
  of_path(dir, path, a, sizeof a);
  AROUND(op, a, NULL, 0, syscall(SYS_unlinkat, dir, path, flags));
}
int unlinkat(int dir, const char *path, int flags) { return removed(flags & AT_REMOVEDIR ? "rmdir" : "unlink", dir, path, flags); }
int unlink(const char *path) { return removed("unlink", AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed("rmdir", AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
  int made = unlink(path);
  return made && errno == EISDIR ? rmdir(path) : made;
}

int mkdirat(int dir, const char *path, mode_t mode) {
  if (!ARMED) return syscall(SYS_mkdirat, dir, path, mode);
  char a[4096];
  of_path(dir, path, a, sizeof a);
  struct stat there;
  if (stat(a, &there) == 0) { /* nothing to make: not a change */
    errno = EEXIST;
    return -1;
  }
  AROUND("mkdir", a, NULL, 1, syscall(SYS_mkdirat, dir, path, mode));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* length and durability */
#define ON_FD(op, fd, grows, call)                           \
  if (!ARMED) return call;                                   \
  char a[4096];                                              \
  of_fd(fd, a, sizeof a);                                    \
  AROUND(op, a, NULL, grows, call)

int fsync(int fd) { ON_FD("fsync", fd, 0, syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { ON_FD("fsync", fd, 0, syscall(SYS_fdatasync, fd)); }
static int resized(int fd, off64_t length) {
  if (!ARMED) return syscall(SYS_ftruncate, fd, length);
  char a[4096];
  of_fd(fd, a, sizeof a);
  int act = gate("truncate", a, NULL, 1, 0);
  if (act < 0) return -1;
  if (TRACED) pthread_mutex_lock(&order);
  int made = syscall(SYS_ftruncate, fd, length);
  int kept = errno;
  if (TRACED) {
    if (made >= 0) note("truncate", a, NULL, length, NULL, 0, 0);
    pthread_mutex_unlock(&order);
  }
  if (act & DIE) die();
  errno = kept;
  return made;
}
int ftruncate(int fd, off_t length) { return resized(fd, length); }
int ftruncate64(int fd, off64_t length) { return resized(fd, length); }
int fallocate(int fd, int mode, off_t offset, off_t length) {
  ON_FD("fallocate", fd, 1, syscall(SYS_fallocate, fd, mode, offset, length));
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }
