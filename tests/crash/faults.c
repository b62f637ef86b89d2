/* Breaks one of the calls by which a process changes what lies below a folder: whoever makes it, Python, SQLite or
 * a library in Rust, on any thread. Loaded before the C library (LD_PRELOAD); `injection.py` builds and arms it.
 *
 * A call counts if it would change something: an open that makes or empties a file, a write, a name that is made,
 * moved or taken away, a length, and every fsync, which is what makes a change last. Not counted are what is mapped
 * into memory, and that SQLite gives its files the owner that they have. The calls go straight to the kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHUTDOWN 0x8004587dU /* EXT4_IOC_SHUTDOWN, the same for XFS */

enum { NOTHING, KILL, CUT, BAD, FULL };
enum { KEEPS = 0, TAKES_ROOM = 1 };

static char below[PATH_MAX];
static size_t below_length;
static int fault, disk = -1, told = -1;
static long wanted;
static atomic_long count;
static atomic_int armed;

/* Breaks the `at`-th call from now on; 0: only counts. `report` is where it is told which one that was. */
int faults_arm(const char *folder, int kind, long at, int report) {
    snprintf(below, sizeof below, "%s", folder);
    below_length = strlen(below);
    fault = kind;
    wanted = at;
    told = report;
    if (kind == CUT && (disk = (int)syscall(SYS_openat, AT_FDCWD, folder, O_RDONLY | O_CLOEXEC, 0)) < 0)
        return -1;
    atomic_store(&count, 0);
    atomic_store(&armed, 1);
    return 0;
}

/* Counts and breaks no more; how many calls there were. */
long faults_disarm(void) {
    atomic_store(&armed, 0);
    return atomic_load(&count);
}

static void say(const char *call, const char *path, long number) {
    char line[PATH_MAX + 100];
    int length = snprintf(line, sizeof line, "struck %ld %s %s\n", number, call, path);
    syscall(SYS_write, told, line, length);
}

static void die(void) {
    syscall(SYS_kill, (int)syscall(SYS_getpid), SIGKILL);
    for (;;)
        pause();
}

static void cut(void) {
    unsigned without_flush = 2;
    if (ioctl(disk, SHUTDOWN, &without_flush) != 0) {
        static const char line[] = "no power to cut\n";
        syscall(SYS_write, told, line, sizeof line - 1);
    }
    die();
}

static int is_below(const char *path) {
    return !strncmp(path, below, below_length) && (path[below_length] == '/' || !path[below_length]);
}

/* Whether this call is ours to count, and where it goes to. */
static int of_file(int fd, char *path) {
    char link[64];
    if (!atomic_load(&armed))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return is_below(path);
}

static int of_name(int folder, const char *name, char *path) {
    if (!atomic_load(&armed))
        return 0;
    if (name[0] == '/')
        snprintf(path, PATH_MAX, "%s", name);
    else {
        if (folder == AT_FDCWD) {
            if (syscall(SYS_getcwd, path, PATH_MAX) < 0)
                return 0;
        } else if (!of_file(folder, path))
            return 0;
        size_t length = strlen(path);
        snprintf(path + length, PATH_MAX - length, "/%s", name);
    }
    return is_below(path);
}

static int is_there(int folder, const char *name) {
    return syscall(SYS_faccessat, folder, name, F_OK) == 0;
}

/* 0, or the error that the call ends with. Where the fault is an end, this does not return; a write that breaks
 * has done the half of its work before. */
static int broken(const char *call, const char *path, int room) {
    long number = atomic_fetch_add(&count, 1) + 1;
    if (!wanted || number < wanted || !fault)
        return 0;
    if (number > wanted)
        return fault == FULL && room ? ENOSPC : 0; /* a full disk stays full */
    say(call, path, number);
    return fault == KILL || fault == CUT ? -1 : fault == FULL ? ENOSPC : EIO;
}

static void end(void) {
    if (fault == CUT)
        cut();
    die();
}

/* Before what is done at once or not at all. */
#define REFUSED(error) \
    do { \
        int found = (error); \
        if (found < 0) \
            end(); \
        if (found > 0) { \
            errno = found; \
            return -1; \
        } \
    } while (0)

static size_t half(size_t length) { return length < 8192 ? length / 2 : length / 2 & ~(size_t)4095; }

/* -- writes */

static ssize_t put(const char *call, int fd, const void *data, size_t length, off_t offset) {
    char path[PATH_MAX];
    int error = of_file(fd, path) ? broken(call, path, TAKES_ROOM) : 0;
    size_t now = error ? half(length) : length;
    ssize_t done = 0;
    if (now || !error)
        done = offset < 0 ? syscall(SYS_write, fd, data, now) : syscall(SYS_pwrite64, fd, data, now, offset);
    REFUSED(error);
    return done;
}

ssize_t write(int fd, const void *data, size_t length) { return put("write", fd, data, length, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return put("pwrite", fd, data, length, at); }
ssize_t pwrite64(int fd, const void *data, size_t length, off_t at) { return put("pwrite", fd, data, length, at); }

ssize_t writev(int fd, const struct iovec *parts, int number) {
    char path[PATH_MAX];
    REFUSED(of_file(fd, path) ? broken("writev", path, TAKES_ROOM) : 0);
    return syscall(SYS_writev, fd, parts, number);
}

/* -- lengths */

static int cut_off(int fd, off_t length) {
    char path[PATH_MAX];
    REFUSED(of_file(fd, path) ? broken("ftruncate", path, KEEPS) : 0);
    return (int)syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length) { return cut_off(fd, length); }
int ftruncate64(int fd, off_t length) { return cut_off(fd, length); }

static int allocate(int fd, int mode, off_t begin, off_t length) {
    char path[PATH_MAX];
    REFUSED(of_file(fd, path) ? broken("fallocate", path, TAKES_ROOM) : 0);
    return (int)syscall(SYS_fallocate, fd, mode, begin, length);
}

int fallocate(int fd, int mode, off_t begin, off_t length) { return allocate(fd, mode, begin, length); }
int fallocate64(int fd, int mode, off_t begin, off_t length) { return allocate(fd, mode, begin, length); }

/* -- what makes it last */

int fsync(int fd) {
    char path[PATH_MAX];
    REFUSED(of_file(fd, path) ? broken("fsync", path, KEEPS) : 0);
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    char path[PATH_MAX];
    REFUSED(of_file(fd, path) ? broken("fdatasync", path, KEEPS) : 0);
    return (int)syscall(SYS_fdatasync, fd);
}

/* -- names */

static int opened(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int changes = flags & O_TRUNC || (flags & O_CREAT && !is_there(folder, name));
    REFUSED(changes && of_name(folder, name, path) ? broken("open", path, TAKES_ROOM) : 0);
    return (int)syscall(SYS_openat, folder, name, flags, mode);
}

#define WITH_MODE(call) \
    mode_t mode = 0; \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    } \
    return call

int open(const char *name, int flags, ...) { WITH_MODE(opened(AT_FDCWD, name, flags, mode)); }
int open64(const char *name, int flags, ...) { WITH_MODE(opened(AT_FDCWD, name, flags, mode)); }
int openat(int folder, const char *name, int flags, ...) { WITH_MODE(opened(folder, name, flags, mode)); }
int openat64(int folder, const char *name, int flags, ...) { WITH_MODE(opened(folder, name, flags, mode)); }

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    REFUSED(!is_there(folder, name) && of_name(folder, name, path) ? broken("mkdir", path, TAKES_ROOM) : 0);
    return (int)syscall(SYS_mkdirat, folder, name, mode);
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int linkat(int from, const char *old, int to, const char *name, int flags) {
    char path[PATH_MAX];
    REFUSED(of_name(to, name, path) ? broken("link", path, TAKES_ROOM) : 0);
    return (int)syscall(SYS_linkat, from, old, to, name, flags);
}

int link(const char *old, const char *name) { return linkat(AT_FDCWD, old, AT_FDCWD, name, 0); }

int renameat(int from, const char *old, int to, const char *name) {
    char path[PATH_MAX];
    REFUSED(of_name(to, name, path) ? broken("rename", path, KEEPS) : 0);
    return (int)syscall(SYS_renameat2, from, old, to, name, 0);
}

int rename(const char *old, const char *name) { return renameat(AT_FDCWD, old, AT_FDCWD, name); }

int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    REFUSED(is_there(folder, name) && of_name(folder, name, path) ? broken("unlink", path, KEEPS) : 0);
    return (int)syscall(SYS_unlinkat, folder, name, flags);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
