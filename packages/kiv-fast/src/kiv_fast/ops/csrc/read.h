/* Reads of many rows of a file: those that the system has in memory at once, the others after all of them were asked for. */
#ifndef KIV_READ_H
#define KIV_READ_H

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
