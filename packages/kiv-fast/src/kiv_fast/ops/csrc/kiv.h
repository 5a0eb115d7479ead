/* What the compiled operations share. Sizes are in elements; the letters are those of SPEC 1.1. */
#ifndef KIV_H
#define KIV_H

#include <stdint.h>

enum { F32, BF16, F16 }; /* how keys and values are stored; everything is computed in float32 */

/* The index of one sequence's cold pages (SPEC 3): tables by page id, and the ids in order of position. */
typedef struct {
    const uint8_t *codes;    /* [page][H][P / 16, rounded up][W / 4][16][4]: channels m and m + W share a byte, m in its
                                lower half; a block of 16 tokens lies together */
    const int16_t *channels; /* [page][H][2 W] */
    const float *step;       /* [page][H][2 W] */
    const float *base;       /* [page][H][D] */
    const float *mean;       /* [page][H][DV], mean values */
    const int32_t *page;     /* [pages] */
    const uint8_t *unseen;   /* [pages * P], cold tokens that are not valid, or null */
    int64_t pages, heads, tokens, half, width, value_width; /* N, H, P, W, D, DV */
} Index;

/* The members of a block: G query heads of each KV head, times its queries. */
typedef struct {
    const float *query; /* [H][M][D] */
    const float *sink;  /* [H][M], learned sink logits, or null */
    int64_t heads, members, width;
    float scale, softcap; /* softcap 0: none */
    int32_t group_max;    /* whether `group` is "max" */
    int32_t threads;
} Query;

/* Keys or values where they lie: token i of head h in page[i / tokens] or, without pages, at h * head + i * width. */
typedef struct {
    const void *data;
    const int32_t *page;
    int64_t tokens, heads, head, width;
    int64_t kind;
} Rows;

/* Consecutive tokens that a query attends to as far as its own position. */
typedef struct {
    Rows key, value;
    int64_t first, count;
    const uint8_t *valid; /* [count], or null */
} Run;

/* Estimates of cold tokens: those that may be candidates one by one, and of the others the sums by page. */
typedef struct {
    int64_t least;  /* no more tokens than this are asked for */
    float *most;    /* [H][M][pages], the largest estimates; minus infinity without a token */
    float *sum;     /* [H][M][pages], of a page's tokens that are not listed, e^(logit of the estimate - that of `most`) */
    int32_t *name;  /* tokens that may be among the `least` best, ascending: those of head h from start[h] on */
    float *score;   /* their group scores */
    float *listed;  /* their estimates, as `listed_row` has them */
    int64_t *start, *count, *room; /* [H]; these eight are set by `estimate`, and hold until this thread estimates again */
} Estimates;

/* Candidates and selection: rows of `stride` numbers, of which `candidates` count; -1 fills up what is not used. */
typedef struct {
    int32_t *at;     /* [H][stride], cold tokens, ascending */
    float *raw;      /* [H][M][stride], scale * q . k */
    int32_t *chosen; /* [H][selected], which of them are selected, ascending */
    int32_t *late;   /* [H] */
    int64_t stride, candidates, selected;
} Found;

/* All that a block attends to (SPEC 5), and where the results go. */
typedef struct {
    const Run *run;
    int64_t runs;
    const int64_t *position; /* [queries] */
    int64_t queries, value_width;
    const Found *found; /* null where nothing is retrieved */
    Rows value;         /* of the selected tokens: by cold token or, without pages, by place in `chosen` */
    const Index *index;
    const Estimates *estimates;
    float *tail; /* [H][M][pages], room for the logits of pages, or null: what is not selected does not count */
    void *out;         /* member (g, t) of head h: at (h * G + g) * out_head + t * value_width */
    int64_t out_head, out_kind;
    float *most, *total; /* [H][M], the largest logit, and the sum of e^(logit - it): both or neither */
    float *estimated;    /* [H][M], shares */
    int64_t finite;      /* whether every value and every mean is a number */
} Attend;

/* What the missed bound is made of (SPEC 6.2), beside the queries. */
typedef struct {
    const Index *index;
    const Estimates *estimates;
    const Found *found;
    const float *error; /* [pages][H of the index][D], the largest distances of keys from approximate keys */
    const double *held; /* [H][M], as `held` gives it */
    float *room;        /* [H][M][pages] */
    float *slack;       /* [H][M][pages][3], what is found out of pages whatever the candidates are */
    int64_t known;      /* whether it is there already */
    double *share;      /* [3][H][M]: as it is, if all candidates were selected, and of any `least` tokens no less than this */
    int64_t head;       /* the only one that `found` has, and that is asked for; or -1 */
} Missed;

typedef void (*Body)(void *context, int64_t task);
int kiv_run(Body body, void *context, int64_t tasks, int32_t threads); /* whether a task had no memory */
void *kiv_workspace(int slot, int64_t nbytes); /* of this thread, until it uses the slot again; null if refused */
void kiv_no_memory(void);                      /* tells the run of the task that it failed */

/* Tokens [B][H][n] of `nbytes` each, which lie together where they go; distances in bytes. */
typedef struct {
    const void *from;
    void *to;
    int64_t batch, heads, count, nbytes, kind;
    int64_t from_batch, from_head, from_token, to_batch, to_head;
} Copy;

/* The operations for one set of instructions; they return 0, or 1 if memory was refused. */
typedef struct {
    int (*estimate)(const Index *, const Query *, Estimates *);
    int (*best)(const Query *, const Estimates *, const Found *);
    int (*select)(const Query *, const Rows *, const Estimates *, const Found *known, Found *);
    int (*attend)(const Query *, const Attend *);
    int (*finite)(const void *numbers, int64_t count, int64_t kind, int32_t threads); /* whether all are */
    int (*append)(const Copy *, int64_t copies); /* a bit for each that has numbers that are not finite */
    int (*held)(const Query *, const Attend *, double *logarithms);
    int (*missed)(const Query *, const Missed *);
} Operations;

#endif
