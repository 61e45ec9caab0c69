/* Preloaded into the campaign: refuses one kind of file-system call below one folder, from one call on.
 *
 * refuse_begin(folder, kind, first, count, number): the calls `first` ... `first + count - 1` (from 1) of `kind` that
 * name or use a path below `folder` fail with errno `number`. refuse_calls() is the number of such calls so far. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { NONE, RENAME, LINK, MKDIR, CREATE, READ_OPEN, WRITE, READ, FSYNC_FILE, FSYNC_FOLDER, UNLINK, TRUNCATE, FLOCK, MMAP, SHORT_WRITE };

static char below[PATH_MAX];
static int active = NONE, number, from, many, calls;

void refuse_begin(const char *folder, int kind, int first, int count, int error) {
    snprintf(below, sizeof below, "%s", folder);
    number = error, from = first, many = count, calls = 0;
    active = kind;
}

int refuse_calls(void) { return calls; }

static int is_below(const char *path) { return strncmp(path, below, strlen(below)) == 0; }

static int named(int folder, const char *name) {
    char path[PATH_MAX];
    if (name[0] == '/') return is_below(name);
    if (folder == AT_FDCWD) {
        if (!getcwd(path, sizeof path)) return 0;
        return is_below(path);
    }
    return 1;
}

static int used(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_below(path);
}

static int refuses(int kind) {
    int call = __sync_add_and_fetch(&calls, 1);
    if (call < from || call >= from + many) return 0;
    (void)kind;
    errno = number;
    return 1;
}

static int refuses_name(int kind, int folder, const char *name) {
    return active == kind && named(folder, name) && refuses(kind);
}

static int refuses_file(int kind, int file) { return active == kind && used(file) && refuses(kind); }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int rename(const char *a, const char *b) { REAL(rename); return refuses_name(RENAME, AT_FDCWD, b) ? -1 : real(a, b); }
int renameat(int d, const char *a, int e, const char *b) { REAL(renameat); return refuses_name(RENAME, e, b) ? -1 : real(d, a, e, b); }
int link(const char *a, const char *b) { REAL(link); return refuses_name(LINK, AT_FDCWD, b) ? -1 : real(a, b); }
int linkat(int d, const char *a, int e, const char *b, int f) { REAL(linkat); return refuses_name(LINK, e, b) ? -1 : real(d, a, e, b, f); }
int mkdir(const char *a, mode_t m) { REAL(mkdir); return refuses_name(MKDIR, AT_FDCWD, a) ? -1 : real(a, m); }
int mkdirat(int d, const char *a, mode_t m) { REAL(mkdirat); return refuses_name(MKDIR, d, a) ? -1 : real(d, a, m); }
int unlink(const char *a) { REAL(unlink); return refuses_name(UNLINK, AT_FDCWD, a) ? -1 : real(a); }
int unlinkat(int d, const char *a, int f) { REAL(unlinkat); return refuses_name(UNLINK, d, a) ? -1 : real(d, a, f); }
int rmdir(const char *a) { REAL(rmdir); return refuses_name(UNLINK, AT_FDCWD, a) ? -1 : real(a); }
int ftruncate(int f, off_t n) { REAL(ftruncate); return refuses_file(TRUNCATE, f) ? -1 : real(f, n); }
int ftruncate64(int f, off64_t n) { REAL(ftruncate64); return refuses_file(TRUNCATE, f) ? -1 : real(f, n); }
int flock(int f, int o) { REAL(flock); return refuses_file(FLOCK, f) ? -1 : real(f, o); }

int fsync(int f) {
    REAL(fsync);
    struct stat found;
    int kind = fstat(f, &found) == 0 && S_ISDIR(found.st_mode) ? FSYNC_FOLDER : FSYNC_FILE;
    return refuses_file(kind, f) ? -1 : real(f);
}

ssize_t write(int f, const void *p, size_t n) {
    REAL(write);
    if (refuses_file(WRITE, f)) return -1;
    if (n > 1 && refuses_file(SHORT_WRITE, f)) return real(f, p, n / 2);
    return real(f, p, n);
}
ssize_t pwrite(int f, const void *p, size_t n, off_t o) { REAL(pwrite); return refuses_file(WRITE, f) ? -1 : real(f, p, n, o); }
ssize_t pwrite64(int f, const void *p, size_t n, off64_t o) { REAL(pwrite64); return refuses_file(WRITE, f) ? -1 : real(f, p, n, o); }
ssize_t writev(int f, const struct iovec *v, int n) { REAL(writev); return refuses_file(WRITE, f) ? -1 : real(f, v, n); }
ssize_t read(int f, void *p, size_t n) { REAL(read); return refuses_file(READ, f) ? -1 : real(f, p, n); }
ssize_t pread(int f, void *p, size_t n, off_t o) { REAL(pread); return refuses_file(READ, f) ? -1 : real(f, p, n, o); }
ssize_t pread64(int f, void *p, size_t n, off64_t o) { REAL(pread64); return refuses_file(READ, f) ? -1 : real(f, p, n, o); }
void *mmap(void *a, size_t n, int p, int m, int f, off_t o) { REAL(mmap); return f >= 0 && refuses_file(MMAP, f) ? MAP_FAILED : real(a, n, p, m, f, o); }
void *mmap64(void *a, size_t n, int p, int m, int f, off64_t o) { REAL(mmap64); return f >= 0 && refuses_file(MMAP, f) ? MAP_FAILED : real(a, n, p, m, f, o); }

#define OPEN(name, folder, ...)                                                             \
    mode_t mode = 0;                                                                        \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
    REAL(name);                                                                             \
    return refuses_name(flags & (O_WRONLY | O_RDWR | O_CREAT) ? CREATE : READ_OPEN, folder, path) ? -1 : real(__VA_ARGS__, mode);

int open(const char *path, int flags, ...) { OPEN(open, AT_FDCWD, path, flags) }
int open64(const char *path, int flags, ...) { OPEN(open64, AT_FDCWD, path, flags) }
int openat(int folder, const char *path, int flags, ...) { OPEN(openat, folder, folder, path, flags) }
int openat64(int folder, const char *path, int flags, ...) { OPEN(openat64, folder, folder, path, flags) }
