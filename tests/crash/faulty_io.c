/* Fails chosen system calls of a process and of all that it forks, while it runs.

   LD_PRELOAD=faulty_io.so FAULTY_IO=rules python -m arcpipe serve

   `rules` is a file of RULES fixed slots (struct rule), which a test maps and rewrites (tests/crash/io_faults.py); every
   process maps the same page, so a rule is in force at once and "the next call, whoever makes it" is one call of all.
   A call is looked at only while a rule for its kind is active. Paths are those that /proc/self/fd tells, so a file that
   was renamed since it was opened has its new name.

   As a device does it: a read that begins before the bad bytes is cut short at them, one that begins in them fails. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define RULES 16
#define TRACKED 64 /* files of a process whose unsynced bytes are known */

enum { READ = 1, WRITE = 2, SYNC = 4, TRUNCATE = 8, OPEN = 16, CREATE = 32, RENAME = 64, UNLINK = 128, FORK = 256 };
enum { BEFORE = 0, AFTER = 1, DROP = 2 }; /* not done; done all the same; (a sync) what it was to keep is gone */

struct rule {
  _Atomic uint32_t active;
  uint32_t calls;
  int32_t error;
  uint32_t effect;
  _Atomic int64_t left; /* times to fail; negative: for as long as it is active */
  int64_t start, end;   /* bytes of the file, for reads and writes */
  _Atomic uint64_t hits;
  char path[192];       /* fnmatch, where * matches a slash too */
  char process[64];     /* the same for the process's title */
};

static struct rule *rules;

struct unsynced {
  dev_t device;
  ino_t inode;
  int64_t start, end;
};

static struct unsynced tracked[TRACKED];
static pthread_mutex_t tracking = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void map_rules(void) {
  const char *path = getenv("FAULTY_IO");
  if (path == NULL) return;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
  if (fd < 0) return;
  void *map = mmap(NULL, sizeof(struct rule) * RULES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (map != MAP_FAILED) rules = map;
}

static void path_of(int fd, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
  path[length < 0 ? 0 : length] = 0;
}

static void path_at(int directory, const char *name, char *path, size_t size) {
  if (name[0] == '/') {
    snprintf(path, size, "%s", name);
    return;
  }
  char folder[PATH_MAX / 2];
  if (directory == AT_FDCWD) {
    if (getcwd(folder, sizeof folder) == NULL) folder[0] = 0;
  } else {
    path_of(directory, folder, sizeof folder);
  }
  snprintf(path, size, "%s/%.2000s", folder, name);
}

static int is_process(const char *pattern) {
  char title[256];
  int fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC, 0);
  long length = fd < 0 ? 0 : syscall(SYS_read, fd, title, sizeof title - 1);
  if (fd >= 0) syscall(SYS_close, fd);
  title[length < 0 ? 0 : length] = 0;
  return fnmatch(pattern, title, 0) == 0;
}

static int is_wanted(uint32_t call) {
  if (rules == NULL) return 0;
  for (int index = 0; index < RULES; index++)
    if (atomic_load(&rules[index].active) && rules[index].calls & call) return 1;
  return 0;
}

static int is_for(struct rule *rule, uint32_t call, const char *path) {
  return atomic_load(&rule->active) && rule->calls & call && fnmatch(rule->path, path, 0) == 0 &&
         is_process(rule->process);
}

/* Takes one of the times that a rule has left. */
static int strike(struct rule *rule) {
  int64_t left = atomic_load(&rule->left);
  while (left > 0)
    if (atomic_compare_exchange_weak(&rule->left, &left, left - 1)) break;
  if (left == 0) return 0;
  atomic_fetch_add(&rule->hits, 1);
  return 1;
}

/* The rule that strikes a call, or NULL. `wanted`: bytes from `offset` on; cut to those before the bad ones. */
static struct rule *find(uint32_t call, const char *path, int64_t offset, size_t *wanted) {
  for (int index = 0; index < RULES; index++) {
    struct rule *rule = &rules[index];
    if (!is_for(rule, call, path)) continue;
    if (wanted != NULL) {
      if (offset >= rule->end || offset + (int64_t)*wanted <= rule->start) continue;
      if (offset < rule->start) {
        *wanted = (size_t)(rule->start - offset);
        continue;
      }
    }
    if (strike(rule)) return rule;
  }
  return NULL;
}

static struct rule *find_by_fd(uint32_t call, int fd, int64_t offset, size_t *wanted) {
  int before = errno;
  char path[PATH_MAX];
  path_of(fd, path, sizeof path);
  struct rule *rule = find(call, path, offset, wanted);
  errno = before;
  return rule;
}

/* Reads and writes, which all come down to vectors */

static size_t size_of(const struct iovec *parts, int count) {
  size_t size = 0;
  for (int index = 0; index < count; index++) size += parts[index].iov_len;
  return size;
}

static int cut(struct iovec *parts, int count, size_t size) {
  int index = 0;
  while (index < count && size > 0) {
    if (parts[index].iov_len > size) parts[index].iov_len = size;
    size -= parts[index++].iov_len;
  }
  return index;
}

static void note_unsynced(int fd, int64_t start, int64_t end) {
  struct stat stat;
  if (fstat(fd, &stat) != 0) return;
  pthread_mutex_lock(&tracking);
  struct unsynced *mine = NULL;
  for (int index = 0; index < TRACKED && mine == NULL; index++)
    if (tracked[index].inode == stat.st_ino && tracked[index].device == stat.st_dev) mine = &tracked[index];
  for (int index = 0; index < TRACKED && mine == NULL; index++)
    if (tracked[index].inode == 0) mine = &tracked[index];
  if (mine != NULL) {
    int is_new = mine->inode == 0 || mine->end == 0;
    mine->device = stat.st_dev;
    mine->inode = stat.st_ino;
    if (is_new || start < mine->start) mine->start = start;
    if (is_new || end > mine->end) mine->end = end;
  }
  pthread_mutex_unlock(&tracking);
}

/* Forgets what was not synced; with `drop` the disk does, too: it reads as zeros from now on. */
static void end_unsynced(int fd, int drop) {
  struct stat stat;
  if (fstat(fd, &stat) != 0) return;
  pthread_mutex_lock(&tracking);
  for (int index = 0; index < TRACKED; index++) {
    struct unsynced *mine = &tracked[index];
    if (mine->inode != stat.st_ino || mine->device != stat.st_dev || mine->end == 0) continue;
    if (drop) {
      static const char zeros[4096];
      for (int64_t at = mine->start; at < mine->end;) {
        int64_t size = mine->end - at < 4096 ? mine->end - at : 4096;
        if (syscall(SYS_pwrite64, fd, zeros, (size_t)size, at) != size) break;
        at += size;
      }
    }
    mine->start = mine->end = 0;
  }
  pthread_mutex_unlock(&tracking);
}

static int may_drop(int fd) {
  char path[PATH_MAX];
  path_of(fd, path, sizeof path);
  for (int index = 0; index < RULES; index++)
    if (rules[index].effect == DROP && is_for(&rules[index], SYNC, path)) return 1;
  return 0;
}

static ssize_t transfer(uint32_t call, int fd, const struct iovec *given, int count, int64_t offset, int flags) {
  struct iovec parts[IOV_MAX];
  if (count < 0 || count > IOV_MAX) {
    errno = EINVAL;
    return -1;
  }
  memcpy(parts, given, sizeof parts[0] * (size_t)count);
  struct rule *rule = NULL;
  int64_t at = offset >= 0 ? offset : lseek(fd, 0, SEEK_CUR);
  if (is_wanted(call) && at >= 0) {
    size_t size = size_of(parts, count), wanted = size;
    rule = find_by_fd(call, fd, at, &wanted);
    if (wanted < size) count = cut(parts, count, wanted);
    if (rule != NULL && rule->effect != AFTER) {
      errno = rule->error;
      return -1;
    }
  }
  /* As the C library does it: preadv2 at -1 is readv. */
  long number = call == READ ? SYS_preadv2 : SYS_pwritev2;
  ssize_t done = syscall(number, fd, parts, (long)count, (long)offset, 0L, (long)flags);
  if (done > 0 && call == WRITE && at >= 0 && is_wanted(SYNC) && may_drop(fd)) note_unsynced(fd, at, at + done);
  if (rule != NULL) {
    errno = rule->error;
    return -1;
  }
  return done;
}

ssize_t preadv(int fd, const struct iovec *parts, int count, off_t offset) {
  return transfer(READ, fd, parts, count, offset, 0);
}
ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
  return transfer(READ, fd, parts, count, offset, flags);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  return transfer(WRITE, fd, parts, count, offset, 0);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags) {
  return transfer(WRITE, fd, parts, count, offset, flags);
}
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset) {
  return transfer(READ, fd, parts, count, offset, 0);
}
ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
  return transfer(READ, fd, parts, count, offset, flags);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
  return transfer(WRITE, fd, parts, count, offset, 0);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags) {
  return transfer(WRITE, fd, parts, count, offset, flags);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t offset) {
  struct iovec part = {data, size};
  return transfer(READ, fd, &part, 1, offset, 0);
}
ssize_t pread(int fd, void *data, size_t size, off_t offset) { return pread64(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
  struct iovec part = {(void *)data, size};
  return transfer(WRITE, fd, &part, 1, offset, 0);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }
ssize_t read(int fd, void *data, size_t size) {
  if (!is_wanted(READ)) return REAL(read)(fd, data, size);
  struct iovec part = {data, size};
  return transfer(READ, fd, &part, 1, -1, 0);
}
ssize_t write(int fd, const void *data, size_t size) {
  if (!is_wanted(WRITE | SYNC)) return REAL(write)(fd, data, size);
  struct iovec part = {(void *)data, size};
  return transfer(WRITE, fd, &part, 1, -1, 0);
}

/* Syncs and cuts */

static int sync_file(int fd, int (*call)(int)) {
  if (!is_wanted(SYNC)) return call(fd);
  struct rule *rule = find_by_fd(SYNC, fd, 0, NULL);
  if (rule == NULL) {
    int result = call(fd);
    if (result == 0) end_unsynced(fd, 0);
    return result;
  }
  if (rule->effect == DROP) end_unsynced(fd, 1);
  if (rule->effect == AFTER) call(fd);
  errno = rule->error;
  return -1;
}

int fsync(int fd) { return sync_file(fd, REAL(fsync)); }
int fdatasync(int fd) { return sync_file(fd, REAL(fdatasync)); }

int ftruncate64(int fd, off64_t size) {
  struct rule *rule = is_wanted(TRUNCATE) ? find_by_fd(TRUNCATE, fd, 0, NULL) : NULL;
  if (rule == NULL || rule->effect == AFTER) {
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (rule == NULL) return result;
  }
  errno = rule->error;
  return -1;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

/* Names */

static struct rule *find_by_name(uint32_t call, int directory, const char *name) {
  int before = errno;
  char path[PATH_MAX];
  struct rule *rule = NULL;
  if (name != NULL && is_wanted(call)) {
    path_at(directory, name, path, sizeof path);
    rule = find(call, path, 0, NULL);
  }
  errno = before;
  return rule;
}

static int open_file(int directory, const char *name, int flags, mode_t mode) {
  struct rule *rule = find_by_name(flags & O_CREAT ? OPEN | CREATE : OPEN, directory, name);
  if (rule != NULL) {
    errno = rule->error;
    return -1;
  }
  return (int)syscall(SYS_openat, directory, name, flags, mode);
}

#define OPEN_FILE(directory)                                     \
  mode_t mode = 0;                                               \
  if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {     \
    va_list more;                                                \
    va_start(more, flags);                                       \
    mode = va_arg(more, mode_t);                                 \
    va_end(more);                                                \
  }                                                              \
  return open_file(directory, name, flags, mode);

int open(const char *name, int flags, ...) { OPEN_FILE(AT_FDCWD) }
int open64(const char *name, int flags, ...) { OPEN_FILE(AT_FDCWD) }
int openat(int directory, const char *name, int flags, ...) { OPEN_FILE(directory) }
int openat64(int directory, const char *name, int flags, ...) { OPEN_FILE(directory) }

static int rename_file(int from, const char *source, int to, const char *target) {
  struct rule *rule = find_by_name(RENAME, from, source);
  if (rule == NULL) rule = find_by_name(RENAME, to, target);
  if (rule == NULL || rule->effect == AFTER) {
    int result = (int)syscall(SYS_renameat2, from, source, to, target, 0);
    if (rule == NULL) return result;
  }
  errno = rule->error;
  return -1;
}

int rename(const char *source, const char *target) { return rename_file(AT_FDCWD, source, AT_FDCWD, target); }
int renameat(int from, const char *source, int to, const char *target) { return rename_file(from, source, to, target); }

static int remove_file(int directory, const char *name, int flags) {
  struct rule *rule = find_by_name(UNLINK, directory, name);
  if (rule == NULL || rule->effect == AFTER) {
    int result = (int)syscall(SYS_unlinkat, directory, name, flags);
    if (rule == NULL) return result;
  }
  errno = rule->error;
  return -1;
}

int unlink(const char *name) { return remove_file(AT_FDCWD, name, 0); }
int unlinkat(int directory, const char *name, int flags) { return remove_file(directory, name, flags); }

/* Processes: the path of a fork is empty */

pid_t fork(void) {
  if (is_wanted(FORK)) {
    struct rule *rule = find(FORK, "", 0, NULL);
    if (rule != NULL) {
      errno = rule->error;
      return -1;
    }
  }
  return REAL(fork)();
}
