/* A disk that fails when it is told to: for LD_PRELOAD, see disk_faults.py, which tells.
 *
 * Looked at are calls that write or sync, of files whose names begin with DISK_FAULTS_FILE (a
 * ledger, its log and its index). How they fail stands in a file that both sides have mapped into
 * their memory, so that it can change while a process runs, and holds for several at once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2 };

struct orders {            /* disk_faults.Orders, in the same order */
    int64_t kind;          /* which calls fail: WRITE, SYNC, both; 0: none */
    int64_t only;          /* 0: of any file; 1: of the ledger file itself; 2: of its log */
    int64_t skip;          /* so many of these calls do well before */
    int64_t most;          /* so many fail; -1: all, until told otherwise */
    int64_t number;        /* with which errno */
    int64_t torn;          /* whether a write that fails leaves half of its bytes */
    int64_t failed;        /* how many have failed */
    int64_t seen;          /* how many calls there were in all */
};

static struct orders *orders;
static const char *ledger;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DISK_FAULTS_ORDERS");
    ledger = getenv("DISK_FAULTS_FILE");
    if (!path || !ledger)
        return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) {
        perror("disk_faults: orders");
        abort();
    }
    orders = mmap(NULL, sizeof *orders, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (orders == MAP_FAILED)
        abort();
}

/* 1: the ledger file, 2: its log, 3: its index; 0: no business of ours. */
static int which(int file) {
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0)
        return 0;
    name[length] = 0;
    size_t ours = strlen(ledger);
    if (strncmp(name, ledger, ours))
        return 0;
    const char *rest = name + ours;
    return !*rest ? 1 : !strcmp(rest, "-wal") ? 2 : !strcmp(rest, "-shm") ? 3 : 0;
}

static int fails(int file, int kind) {
    if (!orders)
        return 0;
    int here = which(file);
    if (!here)
        return 0;
    __atomic_add_fetch(&orders->seen, 1, __ATOMIC_SEQ_CST);
    int64_t only = orders->only;
    if (!(orders->kind & kind) || (only && only != here))
        return 0;
    if (__atomic_sub_fetch(&orders->skip, 1, __ATOMIC_SEQ_CST) >= 0)
        return 0;
    if (orders->most >= 0 && __atomic_sub_fetch(&orders->most, 1, __ATOMIC_SEQ_CST) < 0) {
        orders->kind = 0;
        return 0;
    }
    __atomic_add_fetch(&orders->failed, 1, __ATOMIC_SEQ_CST);
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static ssize_t failed_write(int file, const void *bytes, size_t count, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real)
        real = REAL(pwrite);
    if (orders->torn && at >= 0)
        real(file, bytes, count / 2, at);
    errno = (int)orders->number;
    return -1;
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real)
        real = REAL(pwrite);
    return fails(file, WRITE) ? failed_write(file, bytes, count, at) : real(file, bytes, count, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real)
        real = REAL(pwrite64);
    return fails(file, WRITE) ? failed_write(file, bytes, count, at) : real(file, bytes, count, at);
}

ssize_t write(int file, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real)
        real = REAL(write);
    return fails(file, WRITE) ? failed_write(file, bytes, count, -1) : real(file, bytes, count);
}

#define FAILING(kind, call, name)                  \
    do {                                           \
        static __typeof__(&name) real;             \
        if (!real)                                 \
            real = REAL(name);                     \
        if (fails(file, kind)) {                   \
            errno = (int)orders->number;           \
            return -1;                             \
        }                                          \
        return real call;                          \
    } while (0)

int ftruncate(int file, off_t length) { FAILING(WRITE, (file, length), ftruncate); }
int ftruncate64(int file, off64_t length) { FAILING(WRITE, (file, length), ftruncate64); }
int fsync(int file) { FAILING(SYNC, (file), fsync); }
int fdatasync(int file) { FAILING(SYNC, (file), fdatasync); }
