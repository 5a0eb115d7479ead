/* Many rows at once: copies in memory, and reads of a file, where those that the system has in memory come first and the
   others after all of them were asked for. */
#ifndef KIV_READ_H
#define KIV_READ_H

#include <string.h>

#define COPIES_AT_ONCE 128
#define COPIES_AHEAD 8

typedef struct {
    int64_t count, nbytes;
    const char *from;
    const int64_t *from_at;
    char *to;
    const int64_t *to_at;
} Copies;

static void copy_some(void *context, int64_t task) {
    const Copies *copies = context;
    for (int64_t i = task * COPIES_AT_ONCE; i < (task + 1) * COPIES_AT_ONCE && i < copies->count; i++) {
        if (i + COPIES_AHEAD < copies->count)
            for (int64_t byte = 0; byte < copies->nbytes; byte += 64)
                __builtin_prefetch(copies->from + copies->from_at[i + COPIES_AHEAD] + byte);
        memcpy(copies->to + copies->to_at[i], copies->from + copies->from_at[i], (size_t)copies->nbytes);
    }
}

/* Copy `nbytes` bytes from `from_at[i]` of `from` to `to_at[i]` of `to`, each; with one thread in order. */
SHOWN void kiv_copy_rows(int64_t count, int64_t nbytes, const char *from, const int64_t *from_at, char *to,
                         const int64_t *to_at, int threads) {
    Copies copies = {count, nbytes, from, from_at, to, to_at};
    kiv_run(copy_some, &copies, (count + COPIES_AT_ONCE - 1) / COPIES_AT_ONCE, threads);
}

#ifdef __linux__
#include <sys/uio.h>
#endif

#ifdef RWF_NOWAIT /* Linux, with a C library that knows of it */
#include <errno.h>
#include <fcntl.h>

#define READS_AT_ONCE 128

typedef struct {
    int handle;
    int64_t count;
    const int64_t *offset, *at, *nbytes;
    char *out;
    uint8_t *done;
    _Atomic int error;
} Reads;

static void read_what_is_there(void *context, int64_t task) {
    Reads *reads = context;
    for (int64_t i = task * READS_AT_ONCE; i < (task + 1) * READS_AT_ONCE && i < reads->count; i++) {
        struct iovec part = {reads->out + reads->at[i], (size_t)reads->nbytes[i]};
        reads->done[i] = preadv2(reads->handle, &part, 1, reads->offset[i], RWF_NOWAIT) == reads->nbytes[i];
        if (!reads->done[i]) posix_fadvise(reads->handle, reads->offset[i], reads->nbytes[i], POSIX_FADV_WILLNEED);
    }
}

static void read_the_rest(void *context, int64_t task) {
    Reads *reads = context;
    for (int64_t i = task * READS_AT_ONCE; i < (task + 1) * READS_AT_ONCE && i < reads->count; i++) {
        int64_t have = reads->done[i] ? reads->nbytes[i] : 0;
        while (have < reads->nbytes[i]) {
            ssize_t got = pread(reads->handle, reads->out + reads->at[i] + have, reads->nbytes[i] - have, reads->offset[i] + have);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) {
                reads->error = got ? errno : EIO; /* a file that ends is broken */
                return;
            }
            have += got;
        }
    }
}

/* Read `nbytes[i]` bytes from `offset[i]` of a file to `at[i]` of `out`, each; returns 0, or what went wrong as errno does. */
SHOWN int kiv_read(int handle, int64_t count, const int64_t *offset, const int64_t *at, const int64_t *nbytes, char *out,
                   int threads) {
    int64_t tasks = (count + READS_AT_ONCE - 1) / READS_AT_ONCE;
    Reads reads = {handle, count, offset, at, nbytes, out, malloc((size_t)count), 0};
    if (!reads.done) return ENOMEM;
    kiv_run(read_what_is_there, &reads, tasks, threads);
    kiv_run(read_the_rest, &reads, tasks, threads);
    free(reads.done);
    return reads.error;
}
#endif

#endif
