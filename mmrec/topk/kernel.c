/* Exact top K of dot products: scan, compact, rescore.

In: a block of users, a catalogue sorted by falling norm and packed in panels of 64 items, what users have seen. Out: a
user's K best by (score descending, item row ascending), where a score is the fp64 dot product summed in the order of
the columns and rounded once to fp32. All else here only proposes: what is left out is proven to be out.

Scan: 6 users by 64 items at a time are summed in registers, as fp32 or as int8, and compared there with each user's
floor; only what reaches it is written. Compact: when a user's buffer is full, the K-th best in it raises the floor.
Stop: items come by falling norm, so a group of users is done where norm times norm is below every floor.

Trade-off: AVX-512 alone (VNNI for int8); other machines have another way to the same lists, see exact.py.

Shape legend: B users of a block, N items, D columns, K places, P panels of W items, R users of a group. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define R 6
#define W 64
#define TINY 0x1p-149 /* what rounding to fp32 can add to a sum near zero */
#define F32 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"), optimize("O3")))
#define I8 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"), optimize("O3")))

typedef struct {
    const float *item;     /* (N, D), rows as the caller numbers them */
    const int32_t *row;    /* (P * W) row of a place; places come by falling norm */
    const float *panel;    /* (P, D, W) */
    const double *norm;    /* (P) the greatest of a panel, rounded up */
    const int8_t *panel8;  /* (P, D4, W, 4), D4 = ceil(D / 4) */
    const int32_t *start8; /* (P, W) what takes back the 128 that users are shifted by */
    const double *unit8;   /* (P) steps of int8 in one */
    const double *error8;  /* (P) greatest norm of an item less its int8 form */
    const double *norm8;   /* (P) greatest norm of an int8 form */
    int64_t places, columns, panels;
} catalogue;

typedef struct {
    const float *user;       /* (D) */
    double norm, margin;     /* margin: how far an fp32 score may lie from the final one */
    double unit, error;      /* steps of int8 in one; norm of the user less its int8 form */
    double floor;            /* nothing whose final score is below it can be among the best */
    int32_t *place;          /* (cap) what may be among them, ascending */
    float *score;            /* (cap) fp32 */
    int64_t count, fresh;    /* fresh: from here on nothing is filtered or scored */
    int64_t full;            /* at so many the floor is raised: soon for the first time, then when there is no more room */
    const int32_t *seen, *seen_end; /* places, ascending; those before are behind the fresh ones */
} one;

typedef struct {
    const catalogue *c;
    int64_t k, cap, reduced;
    float *work;             /* (cap) */
    int32_t *rows;           /* (cap) */
    int64_t pushed, scored;  /* told to who measures */
} work;

/* the k-th of n numbers in an order, `BEFORE` of two; they are left in another */
#define KTH(NAME, TYPE, BEFORE)                              \
    static TYPE NAME(TYPE *x, int64_t n, int64_t k) {        \
        int64_t low = 0, high = n - 1, at = k - 1;           \
        while (low < high) {                                 \
            TYPE pivot = x[low + (high - low) / 2];          \
            int64_t i = low, j = high;                       \
            while (i <= j) {                                 \
                while (x[i] BEFORE pivot) i++;               \
                while (pivot BEFORE x[j]) j--;               \
                if (i <= j) {                                \
                    TYPE t = x[i];                           \
                    x[i++] = x[j];                           \
                    x[j--] = t;                              \
                }                                            \
            }                                                \
            if (at <= j) high = j;                           \
            else if (at >= i) low = i;                       \
            else break;                                      \
        }                                                    \
        return x[at];                                        \
    }
KTH(kth_greatest, float, >)
KTH(kth_least, int32_t, <)

/* fp32 dot product, in any order */
F32 static float about(const float *u, const float *v, int64_t d) {
    __m512 a = _mm512_setzero_ps(), b = a;
    int64_t j = 0;
    for (; j + 32 <= d; j += 32) {
        a = _mm512_fmadd_ps(_mm512_loadu_ps(u + j), _mm512_loadu_ps(v + j), a);
        b = _mm512_fmadd_ps(_mm512_loadu_ps(u + j + 16), _mm512_loadu_ps(v + j + 16), b);
    }
    for (; j < d; j += 16) {
        __mmask16 m = d - j >= 16 ? 0xffff : (__mmask16)((1u << (d - j)) - 1);
        a = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, u + j), _mm512_maskz_loadu_ps(m, v + j), a);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}

/* final scores of n items: each its own lane, columns in order */
F32 static void final(const float *u, const catalogue *c, const int32_t *place, int64_t n, float *out) {
    int64_t d = c->columns;
    for (int64_t s = 0; s < n; s += 8) {
        const float *v[8];
        for (int l = 0; l < 8; l++) v[l] = c->item + (int64_t)c->row[place[s + l < n ? s + l : n - 1]] * d;
        __m512d sum = _mm512_setzero_pd();
        int64_t j = 0;
        for (; j + 8 <= d; j += 8) {
            __m256 a0 = _mm256_loadu_ps(v[0] + j), a1 = _mm256_loadu_ps(v[1] + j), a2 = _mm256_loadu_ps(v[2] + j),
                   a3 = _mm256_loadu_ps(v[3] + j), a4 = _mm256_loadu_ps(v[4] + j), a5 = _mm256_loadu_ps(v[5] + j),
                   a6 = _mm256_loadu_ps(v[6] + j), a7 = _mm256_loadu_ps(v[7] + j);
            __m256 b0 = _mm256_unpacklo_ps(a0, a1), b1 = _mm256_unpackhi_ps(a0, a1), b2 = _mm256_unpacklo_ps(a2, a3),
                   b3 = _mm256_unpackhi_ps(a2, a3), b4 = _mm256_unpacklo_ps(a4, a5), b5 = _mm256_unpackhi_ps(a4, a5),
                   b6 = _mm256_unpacklo_ps(a6, a7), b7 = _mm256_unpackhi_ps(a6, a7);
            __m256 c0 = _mm256_shuffle_ps(b0, b2, 0x44), c1 = _mm256_shuffle_ps(b0, b2, 0xee),
                   c2 = _mm256_shuffle_ps(b1, b3, 0x44), c3 = _mm256_shuffle_ps(b1, b3, 0xee),
                   c4 = _mm256_shuffle_ps(b4, b6, 0x44), c5 = _mm256_shuffle_ps(b4, b6, 0xee),
                   c6 = _mm256_shuffle_ps(b5, b7, 0x44), c7 = _mm256_shuffle_ps(b5, b7, 0xee);
            __m256 t[8] = {_mm256_permute2f128_ps(c0, c4, 0x20), _mm256_permute2f128_ps(c1, c5, 0x20),
                           _mm256_permute2f128_ps(c2, c6, 0x20), _mm256_permute2f128_ps(c3, c7, 0x20),
                           _mm256_permute2f128_ps(c0, c4, 0x31), _mm256_permute2f128_ps(c1, c5, 0x31),
                           _mm256_permute2f128_ps(c2, c6, 0x31), _mm256_permute2f128_ps(c3, c7, 0x31)};
            for (int l = 0; l < 8; l++)
                sum = _mm512_fmadd_pd(_mm512_cvtps_pd(t[l]), _mm512_set1_pd((double)u[j + l]), sum);
        }
        for (; j < d; j++) {
            __m256 t = _mm256_setr_ps(v[0][j], v[1][j], v[2][j], v[3][j], v[4][j], v[5][j], v[6][j], v[7][j]);
            sum = _mm512_fmadd_pd(_mm512_cvtps_pd(t), _mm512_set1_pd((double)u[j]), sum);
        }
        float got[8];
        _mm256_storeu_ps(got, _mm512_cvtpd_ps(sum));
        for (int l = 0; l < 8 && s + l < n; l++) out[s + l] = got[l];
    }
}

/* Leave exactly the k best by final score, then by row; places stay ascending. */
static void keep_best(work *w, one *u) {
    int64_t n = u->count, above = 0, equal = 0, kept = 0;
    final(u->user, w->c, u->place, n, u->score);
    w->scored += n;
    if (n <= w->k) return;
    memcpy(w->work, u->score, n * sizeof(float));
    float edge = kth_greatest(w->work, n, w->k);
    for (int64_t i = 0; i < n; i++) {
        above += u->score[i] > edge;
        if (u->score[i] == edge) w->rows[equal++] = w->c->row[u->place[i]];
    }
    int32_t last = kth_least(w->rows, equal, w->k - above);
    for (int64_t i = 0; i < n; i++)
        if (u->score[i] > edge || (u->score[i] == edge && w->c->row[u->place[i]] <= last)) {
            u->place[kept] = u->place[i];
            u->score[kept++] = u->score[i];
        }
    u->count = kept;
}

/* Take out what was seen, score what int8 let pass, raise the floor, and make room. */
static void compact(work *w, one *u) {
    int64_t kept = u->fresh;
    for (int64_t i = u->fresh; i < u->count; i++) {
        int32_t place = u->place[i];
        while (u->seen < u->seen_end && *u->seen < place) u->seen++;
        if (u->seen < u->seen_end && *u->seen == place) continue;
        u->place[kept] = place;
        u->score[kept] = w->reduced ? about(u->user, w->c->item + (int64_t)w->c->row[place] * w->c->columns, w->c->columns)
                                    : u->score[i];
        kept++;
    }
    u->count = u->fresh = kept;
    u->full = w->cap - W;
    if (kept < w->k) return;
    if (isfinite(u->margin)) {
        memcpy(w->work, u->score, kept * sizeof(float));
        double edge = kth_greatest(w->work, kept, w->k);
        /* k items have a final score of at least edge - margin */
        u->floor = fmax(u->floor, edge - u->margin);
        float least = (float)(u->floor - u->margin);
        if ((double)least > u->floor - u->margin) least = nextafterf(least, -INFINITY);
        int64_t n = 0;
        for (int64_t i = 0; i < kept; i++)
            if (u->score[i] >= least) {
                u->place[n] = u->place[i];
                u->score[n++] = u->score[i];
            }
        u->count = u->fresh = n;
    }
    if (u->count > w->cap - w->cap / 4) {
        keep_best(w, u);
        u->fresh = u->count;
        if (isfinite(u->margin)) {
            float edge = INFINITY;
            for (int64_t i = 0; i < u->count; i++) edge = fminf(edge, u->score[i]);
            u->floor = fmax(u->floor, edge);
        }
    }
}

/* what one register of 16 scores lets pass */
F32 static inline void push(one *u, __mmask16 pass, int32_t first, __m512 score) {
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_storeu_si512(u->place + u->count, _mm512_maskz_compress_epi32(pass, at));
    _mm512_storeu_ps(u->score + u->count, _mm512_maskz_compress_ps(pass, score));
    u->count += _mm_popcnt_u32(pass);
}

#define EACH_R(X) X(0) X(1) X(2) X(3) X(4) X(5)

/* panels [from, to) for a group; returns the first panel that no user of the group needs, or `to` */
F32 static int64_t scan32(work *w, one *u, const float *packed, int64_t from, int64_t to, int select) {
    const catalogue *c = w->c;
    int64_t d = c->columns;
    for (int64_t p = from; p < to; p++) {
        int alive = 0;
        float floor[R];
        for (int r = 0; r < R; r++) {
            alive |= !(u[r].norm * c->norm[p] + TINY < u[r].floor);
            double least = u[r].floor - u[r].margin;
            floor[r] = (float)least;
            if ((double)floor[r] > least) floor[r] = nextafterf(floor[r], -INFINITY);
        }
        if (select && !alive) return p;
        const float *v = c->panel + p * d * W;
#define ZERO(r) __m512 a##r = _mm512_setzero_ps(), b##r = a##r, c##r = a##r, d##r = a##r;
        EACH_R(ZERO)
        for (int64_t j = 0; j < d; j++) {
            __m512 v0 = _mm512_loadu_ps(v + j * W), v1 = _mm512_loadu_ps(v + j * W + 16), v2 = _mm512_loadu_ps(v + j * W + 32),
                   v3 = _mm512_loadu_ps(v + j * W + 48);
#define STEP(r)                                           \
    {                                                     \
        __m512 x = _mm512_set1_ps(packed[j * R + r]);     \
        a##r = _mm512_fmadd_ps(v0, x, a##r);              \
        b##r = _mm512_fmadd_ps(v1, x, b##r);              \
        c##r = _mm512_fmadd_ps(v2, x, c##r);              \
        d##r = _mm512_fmadd_ps(v3, x, d##r);              \
    }
            EACH_R(STEP)
        }
        if (!select) {
#define SINK(r) __asm__ volatile("" ::"v"(a##r), "v"(b##r), "v"(c##r), "v"(d##r));
            EACH_R(SINK)
            continue;
        }
        uint64_t there = (p + 1) * W <= c->places ? ~0ull : (1ull << (c->places - p * W)) - 1;
#define PASS(r)                                                                                    \
    {                                                                                              \
        __m512 f = _mm512_set1_ps(floor[r]);                                                       \
        uint64_t m = (uint64_t)_mm512_cmp_ps_mask(a##r, f, _CMP_NLT_UQ) |                          \
                     (uint64_t)_mm512_cmp_ps_mask(b##r, f, _CMP_NLT_UQ) << 16 |                    \
                     (uint64_t)_mm512_cmp_ps_mask(c##r, f, _CMP_NLT_UQ) << 32 |                    \
                     (uint64_t)_mm512_cmp_ps_mask(d##r, f, _CMP_NLT_UQ) << 48;                     \
        m &= there;                                                                                \
        if (__builtin_expect(m != 0, 0) && u[r].user) {                                            \
            int64_t before = u[r].count;                                                           \
            if (m & 0xffff) push(u + r, m, p * W, a##r);                                           \
            if (m >> 16 & 0xffff) push(u + r, m >> 16, p * W + 16, b##r);                          \
            if (m >> 32 & 0xffff) push(u + r, m >> 32, p * W + 32, c##r);                          \
            if (m >> 48) push(u + r, m >> 48, p * W + 48, d##r);                                   \
            w->pushed += u[r].count - before;                                                      \
            if (u[r].count > u[r].full) compact(w, u + r);                                        \
        }                                                                                          \
    }
        EACH_R(PASS)
    }
    return to;
}

I8 static int64_t scan8(work *w, one *u, const int32_t *packed, int64_t from, int64_t to, int select) {
    const catalogue *c = w->c;
    int64_t d = (c->columns + 3) / 4;
    for (int64_t p = from; p < to; p++) {
        int alive = 0;
        int32_t floor[R];
        for (int r = 0; r < R; r++) {
            alive |= !(u[r].norm * c->norm[p] + TINY < u[r].floor);
            /* what rounds to the floor may lie a little below it; and the sum of products is at most the int8 one
            + norm * error of items + error of the user * norm of their int8 forms */
            double edge = u[r].floor - fabs(u[r].floor) * 0x1p-23 - TINY;
            double least = (edge - u[r].norm * c->error8[p] - u[r].error * c->norm8[p]) * u[r].unit * c->unit8[p];
            floor[r] = least > 2e9 ? INT32_MAX : least < -2e9 ? INT32_MIN : (int32_t)(least - 2.0);
        }
        if (select && !alive) return p;
        const int8_t *v = c->panel8 + p * d * W * 4;
        const int32_t *s = c->start8 + p * W;
#define BEGIN(r)                                                                                          \
    __m512i a##r = _mm512_loadu_si512(s), b##r = _mm512_loadu_si512(s + 16), c##r = _mm512_loadu_si512(s + 32), \
            d##r = _mm512_loadu_si512(s + 48);
        EACH_R(BEGIN)
        for (int64_t j = 0; j < d; j++) {
            __m512i v0 = _mm512_loadu_si512(v + j * W * 4), v1 = _mm512_loadu_si512(v + j * W * 4 + 64),
                    v2 = _mm512_loadu_si512(v + j * W * 4 + 128), v3 = _mm512_loadu_si512(v + j * W * 4 + 192);
#define STEP8(r)                                          \
    {                                                     \
        __m512i x = _mm512_set1_epi32(packed[j * R + r]); \
        a##r = _mm512_dpbusd_epi32(a##r, x, v0);          \
        b##r = _mm512_dpbusd_epi32(b##r, x, v1);          \
        c##r = _mm512_dpbusd_epi32(c##r, x, v2);          \
        d##r = _mm512_dpbusd_epi32(d##r, x, v3);          \
    }
            EACH_R(STEP8)
        }
        if (!select) {
            EACH_R(SINK)
            continue;
        }
        uint64_t there = (p + 1) * W <= c->places ? ~0ull : (1ull << (c->places - p * W)) - 1;
#define PASS8(r)                                                                           \
    {                                                                                      \
        __m512i f = _mm512_set1_epi32(floor[r]);                                           \
        uint64_t m = (uint64_t)_mm512_cmpgt_epi32_mask(a##r, f) |                          \
                     (uint64_t)_mm512_cmpgt_epi32_mask(b##r, f) << 16 |                    \
                     (uint64_t)_mm512_cmpgt_epi32_mask(c##r, f) << 32 |                    \
                     (uint64_t)_mm512_cmpgt_epi32_mask(d##r, f) << 48;                     \
        m &= there;                                                                        \
        if (__builtin_expect(m != 0, 0) && u[r].user) {                                    \
            __m512 none = _mm512_setzero_ps();                                             \
            int64_t before = u[r].count;                                                   \
            if (m & 0xffff) push(u + r, m, p * W, none);                                   \
            if (m >> 16 & 0xffff) push(u + r, m >> 16, p * W + 16, none);                  \
            if (m >> 32 & 0xffff) push(u + r, m >> 32, p * W + 32, none);                  \
            if (m >> 48) push(u + r, m >> 48, p * W + 48, none);                           \
            w->pushed += u[r].count - before;                                              \
            if (u[r].count > u[r].full) compact(w, u + r);                                \
        }                                                                                  \
    }
        EACH_R(PASS8)
    }
    return to;
}

/* by falling final score, then by row */
typedef struct {
    float score;
    int32_t row;
} found;

static int better(const void *x, const void *y) {
    const found *a = x, *b = y;
    return a->score != b->score ? (a->score > b->score ? -1 : 1) : (a->row > b->row) - (a->row < b->row);
}

/* A block of users. tile: panels that stay in a cache while all users of the block go over them. reduced: by int8;
unit, error: of users' int8 forms `packed8` (groups, D4, R). select 0: no lists, for what the sums alone take.
told: (2) items that reached a floor, items scored in fp64. Returns 0, or 1 where there is no memory. */
int32_t search(const catalogue *c, const float *user, const float *packed, const int32_t *packed8, const double *norm,
               const double *margin, const double *unit, const double *error, int64_t b, int64_t k,
               const int64_t *seen_ptr, const int32_t *seen, int64_t tile, int64_t reduced, int64_t select,
               int32_t *out_row, float *out_score, int64_t *told) {
    int64_t cap = 4 * k + 512, groups = (b + R - 1) / R, d4 = (c->columns + 3) / 4;
    one *u = calloc(groups * R, sizeof(one));
    int64_t *next = calloc(groups, sizeof(int64_t));
    int32_t *place = malloc(groups * R * (cap + 16) * sizeof(int32_t));
    float *score = malloc(groups * R * (cap + 16) * sizeof(float));
    work w = {c, k, cap, reduced, malloc(cap * sizeof(float)), malloc(cap * sizeof(int32_t)), 0, 0};
    found *best = malloc(cap * sizeof(found));
    int32_t failed = !u || !next || !place || !score || !w.work || !w.rows || !best;
    if (!failed) {
        for (int64_t i = 0; i < groups * R; i++) {
            u[i].place = place + i * (cap + 16);
            u[i].score = score + i * (cap + 16);
            u[i].floor = i < b && norm[i] >= 0 ? -INFINITY : INFINITY;
            if (u[i].floor > 0) continue;
            u[i].user = user + i * c->columns;
            u[i].full = 2 * k + W;
            u[i].norm = norm[i];
            u[i].margin = margin[i];
            if (reduced) {
                u[i].unit = unit[i];
                u[i].error = error[i];
            }
            u[i].seen = seen + seen_ptr[i];
            u[i].seen_end = seen + seen_ptr[i + 1];
        }
        for (int64_t t = 0; t < c->panels; t += tile) {
            int64_t to = t + tile < c->panels ? t + tile : c->panels;
            for (int64_t g = 0; g < groups; g++)
                if (next[g] == t)
                    next[g] = reduced ? scan8(&w, u + g * R, packed8 + g * d4 * R, t, to, select)
                                      : scan32(&w, u + g * R, packed + g * c->columns * R, t, to, select);
        }
        for (int64_t i = 0; i < b && select; i++) {
            if (!u[i].user) continue;
            compact(&w, u + i);
            keep_best(&w, u + i);
            for (int64_t n = 0; n < u[i].count; n++) best[n] = (found){u[i].score[n], c->row[u[i].place[n]]};
            qsort(best, u[i].count, sizeof(found), better);
            for (int64_t n = 0; n < u[i].count && n < k; n++) {
                out_row[i * k + n] = best[n].row;
                out_score[i * k + n] = best[n].score;
            }
        }
        told[0] += w.pushed;
        told[1] += w.scored;
    }
    free(u);
    free(next);
    free(place);
    free(score);
    free(w.work);
    free(w.rows);
    free(best);
    return failed;
}
