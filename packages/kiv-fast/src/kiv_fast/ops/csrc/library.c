/* What the library shows: the operations for the best instructions that are allowed, workspaces, and threads. */
#define _GNU_SOURCE /* preadv2 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "kiv.h"

#ifdef _WIN32
#define SHOWN __declspec(dllexport)
#else
#define SHOWN __attribute__((visibility("default")))
#endif

extern const Operations kiv_operations_plain;
#ifdef __x86_64__
extern const Operations kiv_operations_avx2, kiv_operations_avx512;
#endif

/* 0: any processor; 1: AVX2, FMA, F16C; 2: AVX-512 with VNNI. */
SHOWN int kiv_level(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vnni");
    return avx2 ? 1 + avx512 : 0;
#else
    return 0;
#endif
}

SHOWN const Operations *kiv_operations(int level) {
#ifdef __x86_64__
    if (level == 2) return &kiv_operations_avx512;
    if (level == 1) return &kiv_operations_avx2;
#endif
    return &kiv_operations_plain;
}

/* Threads are those of torch: its own OpenMP runtime runs what is handed to it, so nothing competes with it. */
typedef void (*Region)(void (*body)(void *), void *context, unsigned threads, unsigned flags);
static Region region;
static pid_t owner;

SHOWN void kiv_threads(void *gomp_parallel) {
    region = (Region)gomp_parallel;
    owner = getpid();
}

typedef struct {
    Body body;
    void *context;
    int64_t tasks;
    _Atomic int64_t next;
    _Atomic int failed;
} Job;

static __thread Job *current;

static void work(void *context) {
    Job *job = current = context;
    int64_t task;
    while ((task = atomic_fetch_add(&job->next, 1)) < job->tasks) job->body(job->context, task);
}

void kiv_no_memory(void) { current->failed = 1; }

int kiv_run(Body body, void *context, int64_t tasks, int32_t threads) {
    Job job = {body, context, tasks, 0, 0};
    if (threads > tasks) threads = (int32_t)tasks;
    /* A forked process has no threads but its own: the runtime would wait for ever for those of its parent. */
    if (threads > 1 && region && owner == getpid()) region(work, &job, (unsigned)threads, 0);
    else work(&job);
    return job.failed;
}

#define SLOTS 6

static __thread struct {
    void *memory;
    int64_t nbytes;
} workspace[SLOTS];

/* What a thread had goes with it. */
static pthread_key_t ending;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void give_back(void *rooms) {
    (void)rooms;
    for (int slot = 0; slot < SLOTS; slot++) free(workspace[slot].memory);
}

static void watch_threads(void) { pthread_key_create(&ending, give_back); }

void *kiv_workspace(int slot, int64_t nbytes) {
    if (!workspace[slot].memory || workspace[slot].nbytes < nbytes) {
        pthread_once(&once, watch_threads);
        pthread_setspecific(ending, workspace);
        free(workspace[slot].memory);
        workspace[slot].memory = 0;
        workspace[slot].nbytes = 0;
        nbytes = (nbytes + nbytes / 2 + 4095) / 4096 * 4096;
        if (posix_memalign(&workspace[slot].memory, 64, (size_t)nbytes)) workspace[slot].memory = 0;
        else workspace[slot].nbytes = nbytes;
    }
    return workspace[slot].memory;
}

#include "read.h"
