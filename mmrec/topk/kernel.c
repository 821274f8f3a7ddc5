/* Exact top K of dot products: scan, compact, rescore.

In: a block of users, a catalogue sorted by falling norm and packed in panels of 64 items, what users have seen. Out: a
user's K best by (score descending, item row ascending), where a score is the fp64 dot product summed in the order of
the columns and rounded once to fp32. All else here only proposes: what is left out is proven to be out.

Scan: 6 users by 64 items at a time are summed in registers, as fp32 or as int8, and compared there with each user's
floor; only what reaches it is kept. Compact: when a user's buffer is full, the K-th best in it raises the floor.
Stop: items come by falling norm, so a group of users is done where norm times norm is below every floor.
Guess: one panel in 16 comes first, and the floor is put where some two and a half times K should lie above it; a user of
whom fewer than K turn out to is looked at once more, without a guess.

Trade-off: AVX-512 alone (VNNI for int8); other machines have another way to the same lists, see exact.py.

Shape legend: B users of a block, N items, D columns, K places, P panels of W items, R users of a group. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define R 6
#define W 64
#define HELD 16   /* panels whose scores are held back */
#define SAMPLE 16 /* one panel in so many is looked at first */
#define FEW 256 /* numbers that are put in order by counting */
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

/* What a scan needs of a group's users at every panel; lanes of no user have a floor that nothing reaches. */
typedef struct {
    double norm[8], error[8], unit[8], floor[8]; /* as of one user, below */
    double edge8[8];         /* the least dot product that may round to the floor */
    float edge[8];           /* the least fp32 score whose final one may reach it */
} group;

typedef struct {
    const float *user;       /* (D) */
    group *in;
    int64_t lane;
    double norm, margin;     /* margin: how far an fp32 score may lie from the final one */
    double unit, error;      /* steps of int8 in one; norm of the user less its int8 form */
    double wide;             /* how far above what int8 says a fresh score may lie, at most */
    double floor;            /* nothing whose final score is below it can be among the best, if the guess was right */
    double guess;            /* it was if the K-th best has as much */
    int32_t *place;          /* (cap) what may be among them, ascending; -1: was seen */
    float *score;            /* (cap) fp32; of fresh ones that int8 let pass: what they have at least */
    int64_t count, fresh;    /* fresh: from here on nothing is filtered or scored */
    int64_t full;            /* at so many the floor is raised: soon for the first time, then when there is no more room */
    const int32_t *seen, *seen_end, *seen_begin; /* places, ascending; those before are behind the fresh ones */
} one;

typedef struct {
    const catalogue *c;
    int64_t k, cap, reduced;
    int64_t floor_k;         /* the floor is the score of so many: k, or fewer in a sample */
    const int32_t *order;    /* (P) panels as they are looked at */
    uint64_t *keys;          /* (cap) */
    int64_t pushed, scored;  /* told to who measures */
} work;

/* One number for an order: score descending, then row ascending. */
static uint64_t key(float score, int32_t row) {
    uint32_t bits;
    memcpy(&bits, &score, 4);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)(~bits) << 32 | (uint32_t)row;
}

static float score_of(uint64_t key) {
    uint32_t bits = ~(uint32_t)(key >> 32);
    bits = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
    float score;
    memcpy(&score, &bits, 4);
    return score;
}

/* Split by a pivot: what is left of *low is at most it, what is right of *high at least. */
static void split(uint64_t *x, int64_t *low, int64_t *high) {
    uint64_t pivot = x[*low + (*high - *low) / 2];
    int64_t i = *low, j = *high;
    while (i <= j) {
        while (x[i] < pivot) i++;
        while (pivot < x[j]) j--;
        if (i <= j) {
            uint64_t t = x[i];
            x[i++] = x[j];
            x[j--] = t;
        }
    }
    *low = i;
    *high = j;
}

/* the k-th least of n; they are left in another order */
static uint64_t kth(uint64_t *x, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1, at = k - 1;
    while (low < high) {
        int64_t i = low, j = high;
        split(x, &i, &j);
        if (at <= j) high = j;
        else if (at >= i) low = i;
        else break;
    }
    return x[at];
}

static void sort(uint64_t *x, int64_t low, int64_t high) {
    while (high - low > 12) {
        int64_t i = low, j = high;
        split(x, &i, &j);
        if (j - low < high - i) {
            sort(x, low, j);
            low = i;
        } else {
            sort(x, i, high);
            high = j;
        }
    }
    for (int64_t i = low + 1; i <= high; i++) {
        uint64_t t = x[i];
        int64_t j = i;
        for (; j > low && t < x[j - 1]; j--) x[j] = x[j - 1];
        x[j] = t;
    }
}

/* A number that at least k of n are not below, and hardly more; -inf where fewer than k are above that. */
F32 static float near_kth(const float *x, int64_t n, int64_t k) {
    __m512 none = _mm512_set1_ps(-INFINITY), least = _mm512_set1_ps(INFINITY), most = none;
    int64_t there = 0;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        m = _mm512_mask_cmp_ps_mask(m, v, none, _CMP_GT_OQ);
        there += _mm_popcnt_u32(m);
        least = _mm512_mask_min_ps(least, m, least, v);
        most = _mm512_mask_max_ps(most, m, most, v);
    }
    if (there < k) return -INFINITY;
    float low = _mm512_reduce_min_ps(least), high = _mm512_reduce_max_ps(most);
    for (int turn = 0; turn < 24; turn++) {
        float mid = low + (high - low) / 2;
        if (!(mid > low && mid < high)) break;
        __m512 edge = _mm512_set1_ps(mid);
        int64_t above = 0;
        for (int64_t i = 0; i < n; i += 16) {
            __mmask16 m = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
            above += _mm_popcnt_u32(_mm512_mask_cmp_ps_mask(m, _mm512_maskz_loadu_ps(m, x + i), edge, _CMP_GE_OQ));
        }
        if (above >= k) {
            low = mid;
            if (above <= k + k / 32) break;
        } else {
            high = mid;
        }
    }
    return low;
}

/* fetch an item's vector before it is needed */
static inline void ahead(const catalogue *c, int32_t place) {
    const char *v = (const char *)(c->item + (int64_t)c->row[place] * c->columns);
    for (int64_t j = 0; j < c->columns * 4; j += 64) _mm_prefetch(v + j, _MM_HINT_T0);
}

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

/* eight columns of eight items, a column a register */
#define TURN(v, t)                                                                                                        \
    {                                                                                                                     \
        __m256 a0 = _mm256_loadu_ps(v[0] + j), a1 = _mm256_loadu_ps(v[1] + j), a2 = _mm256_loadu_ps(v[2] + j),            \
               a3 = _mm256_loadu_ps(v[3] + j), a4 = _mm256_loadu_ps(v[4] + j), a5 = _mm256_loadu_ps(v[5] + j),            \
               a6 = _mm256_loadu_ps(v[6] + j), a7 = _mm256_loadu_ps(v[7] + j);                                            \
        __m256 b0 = _mm256_unpacklo_ps(a0, a1), b1 = _mm256_unpackhi_ps(a0, a1), b2 = _mm256_unpacklo_ps(a2, a3),         \
               b3 = _mm256_unpackhi_ps(a2, a3), b4 = _mm256_unpacklo_ps(a4, a5), b5 = _mm256_unpackhi_ps(a4, a5),         \
               b6 = _mm256_unpacklo_ps(a6, a7), b7 = _mm256_unpackhi_ps(a6, a7);                                          \
        __m256 c0 = _mm256_shuffle_ps(b0, b2, 0x44), c1 = _mm256_shuffle_ps(b0, b2, 0xee),                                \
               c2 = _mm256_shuffle_ps(b1, b3, 0x44), c3 = _mm256_shuffle_ps(b1, b3, 0xee),                                \
               c4 = _mm256_shuffle_ps(b4, b6, 0x44), c5 = _mm256_shuffle_ps(b4, b6, 0xee),                                \
               c6 = _mm256_shuffle_ps(b5, b7, 0x44), c7 = _mm256_shuffle_ps(b5, b7, 0xee);                                \
        t[0] = _mm256_permute2f128_ps(c0, c4, 0x20), t[1] = _mm256_permute2f128_ps(c1, c5, 0x20);                         \
        t[2] = _mm256_permute2f128_ps(c2, c6, 0x20), t[3] = _mm256_permute2f128_ps(c3, c7, 0x20);                         \
        t[4] = _mm256_permute2f128_ps(c0, c4, 0x31), t[5] = _mm256_permute2f128_ps(c1, c5, 0x31);                         \
        t[6] = _mm256_permute2f128_ps(c2, c6, 0x31), t[7] = _mm256_permute2f128_ps(c3, c7, 0x31);                         \
    }

/* final scores of n items: each its own lane, columns in order; two registers of lanes, because each waits for itself */
F32 static void final(const float *u, const catalogue *c, const int32_t *place, int64_t n, float *out) {
    int64_t d = c->columns;
    for (int64_t s = 0; s < n; s += 16) {
        const float *v[16];
        int two = s + 8 < n;
        for (int l = 0; l < 16; l++) v[l] = c->item + (int64_t)c->row[place[s + l < n ? s + l : n - 1]] * d;
        __m512d sum = _mm512_setzero_pd(), more = sum;
        int64_t j = 0;
        for (; j + 8 <= d; j += 8) {
            __m256 t[8], m[8];
            TURN(v, t)
            if (two) TURN((v + 8), m)
            for (int l = 0; l < 8; l++) {
                __m512d x = _mm512_set1_pd((double)u[j + l]);
                sum = _mm512_fmadd_pd(_mm512_cvtps_pd(t[l]), x, sum);
                if (two) more = _mm512_fmadd_pd(_mm512_cvtps_pd(m[l]), x, more);
            }
        }
        for (; j < d; j++) {
            __m512d x = _mm512_set1_pd((double)u[j]);
            __m256 t = _mm256_setr_ps(v[0][j], v[1][j], v[2][j], v[3][j], v[4][j], v[5][j], v[6][j], v[7][j]);
            __m256 m = _mm256_setr_ps(v[8][j], v[9][j], v[10][j], v[11][j], v[12][j], v[13][j], v[14][j], v[15][j]);
            sum = _mm512_fmadd_pd(_mm512_cvtps_pd(t), x, sum);
            more = _mm512_fmadd_pd(_mm512_cvtps_pd(m), x, more);
        }
        float got[16];
        /* a zero has no sign: -0 would tie with 0 and have another key */
        _mm256_storeu_ps(got, _mm256_add_ps(_mm512_cvtpd_ps(sum), _mm256_setzero_ps()));
        _mm256_storeu_ps(got + 8, _mm256_add_ps(_mm512_cvtpd_ps(more), _mm256_setzero_ps()));
        for (int l = 0; l < 16 && s + l < n; l++) out[s + l] = got[l];
    }
}

/* Leave exactly the k best by final score, then by row; places stay ascending. */
static void keep_best(work *w, one *u) {
    int64_t n = u->count, kept = 0;
    for (int64_t i = 0; i < n; i++) ahead(w->c, u->place[i]);
    final(u->user, w->c, u->place, n, u->score);
    w->scored += n;
    if (n <= w->k) return;
    for (int64_t i = 0; i < n; i++) w->keys[i] = key(u->score[i], w->c->row[u->place[i]]);
    uint64_t last = kth(w->keys, n, w->k);
    for (int64_t i = 0; i < n; i++)
        if (key(u->score[i], w->c->row[u->place[i]]) <= last) {
            u->place[kept] = u->place[i];
            u->score[kept++] = u->score[i];
        }
    u->count = kept;
}

/* the greatest fp32 not above a number */
static float down(double x) {
    float y = (float)x;
    return (double)y > x ? nextafterf(y, -INFINITY) : y;
}

/* Tell the group of a user's floor. */
static void tell(one *u) {
    group *in = u->in;
    in->floor[u->lane] = u->floor;
    in->edge[u->lane] = u->floor == INFINITY ? INFINITY : down(u->floor - u->margin);
    in->edge8[u->lane] = u->floor == INFINITY ? INFINITY : u->floor - fabs(u->floor) * 0x1p-23 - TINY;
}

/* From `start` on leave what was not seen and has `least` or more; the others close up. */
F32 static void sift(one *u, int64_t start, float least) {
    int64_t n = start;
    __m512 edge = _mm512_set1_ps(least);
    for (int64_t i = start; i < u->count; i += 16) {
        __mmask16 m = u->count - i >= 16 ? 0xffff : (__mmask16)((1u << (u->count - i)) - 1);
        __m512i place = _mm512_maskz_loadu_epi32(m, u->place + i);
        __m512 score = _mm512_maskz_loadu_ps(m, u->score + i);
        m = _mm512_mask_cmp_epi32_mask(m, place, _mm512_setzero_si512(), _MM_CMPINT_NLT);
        m = _mm512_mask_cmp_ps_mask(m, score, edge, _CMP_NLT_UQ);
        _mm512_storeu_si512(u->place + n, _mm512_maskz_compress_epi32(m, place));
        _mm512_storeu_ps(u->score + n, _mm512_maskz_compress_ps(m, score));
        n += _mm_popcnt_u32(m);
    }
    u->count = n;
}

/* Take out what was seen, score what int8 let pass, raise the floor, and make room. */
F32 static void compact(work *w, one *u) {
    int trusted = isfinite(u->margin);
    int32_t last = u->count > u->fresh ? u->place[u->count - 1] : -1;
    for (int64_t i = u->fresh; u->seen < u->seen_end && *u->seen <= last; u->seen++) {
        while (i + 16 < u->count && u->place[i + 15] < *u->seen) i += 16; /* both ascend */
        /* behind the end is no place to be found but the same */
        __mmask16 m = _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(u->place + i), _mm512_set1_epi32(*u->seen));
        if (m) {
            _mm512_mask_storeu_epi32(u->place + i, m, _mm512_set1_epi32(-1));
            _mm512_mask_storeu_ps(u->score + i, m, _mm512_set1_ps(-INFINITY));
        }
    }
    u->full = w->floor_k < w->k && u->count + W < w->cap - W ? u->count + W : w->cap - W;
    if (w->reduced) {
        float least = -INFINITY;
        if (trusted) {
            /* k items have this or more: kept ones less what fp32 may be off, fresh ones as int8 says */
            double edge = near_kth(u->score, u->count, w->floor_k) - u->margin;
            least = down(fmax(u->floor, edge) - u->margin - u->wide);
        }
        sift(u, u->fresh, least);
        for (int64_t i = u->fresh; i < u->count && i < u->fresh + 4; i++) ahead(w->c, u->place[i]);
        for (int64_t i = u->fresh; i < u->count; i++) {
            if (i + 4 < u->count) ahead(w->c, u->place[i + 4]);
            u->score[i] = about(u->user, w->c->item + (int64_t)w->c->row[u->place[i]] * w->c->columns, w->c->columns);
        }
        u->wide = 0;
    }
    float edge = trusted ? near_kth(u->score, u->count, w->floor_k) : -INFINITY;
    /* k items have a final score of at least edge - margin */
    if (edge > -INFINITY) u->floor = fmax(u->floor, (double)edge - u->margin);
    sift(u, edge > -INFINITY ? 0 : u->fresh, trusted ? down(u->floor - u->margin) : -INFINITY);
    u->fresh = u->count;
    if (u->count > w->cap - w->cap / 4) {
        keep_best(w, u);
        u->fresh = u->count;
        if (trusted) {
            float least = INFINITY;
            for (int64_t i = 0; i < u->count; i++) least = fminf(least, u->score[i]);
            u->floor = fmax(u->floor, least);
        }
    }
    tell(u);
}

/* How many of n distinct numbers are less than x. */
F32 static int64_t rank_of(const uint64_t *keys, int64_t n, uint64_t x) {
    int64_t less = 0;
    for (int64_t i = 0; i < n; i += 8) {
        __mmask8 m = n - i >= 8 ? 0xff : (__mmask8)((1u << (n - i)) - 1);
        less += _mm_popcnt_u32(_mm512_mask_cmp_epu64_mask(m, _mm512_maskz_loadu_epi64(m, keys + i), _mm512_set1_epi64(x), _MM_CMPINT_LT));
    }
    return less;
}

/* How many of n scores are greater than x. */
F32 static int64_t above(const float *score, int64_t n, float x) {
    int64_t more = 0;
    __m512 edge = _mm512_set1_ps(x);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 m = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        more += _mm_popcnt_u32(_mm512_mask_cmp_ps_mask(m, _mm512_maskz_loadu_ps(m, score + i), edge, _CMP_GT_OQ));
    }
    return more;
}

/* The list of a user whose scan is over; whether its guess was right. */
static int finish(work *w, one *u, int32_t *out_row, float *out_score) {
    int64_t n = u->count;
    final(u->user, w->c, u->place, n, u->score);
    w->scored += n;
    for (int64_t i = 0; i < n; i++) w->keys[i] = key(u->score[i], w->c->row[u->place[i]]);
    int32_t rank[FEW];
    int64_t sum = 0;
    int few = n <= FEW; /* then counting beats sorting, which a processor can't foresee */
    if (!few) sort(w->keys, 0, n - 1);
    for (int64_t i = 0; few && i < n; i++) sum += rank[i] = (int32_t)above(u->score, n, u->score[i]);
    int tied = few && sum < n * (n - 1) / 2; /* of equal scores the row decides */
    for (int64_t i = 0; i < n; i++) {
        int64_t at = !few ? i : tied ? rank_of(w->keys, n, w->keys[i]) : rank[i];
        if (at >= w->k) continue;
        out_row[at] = (int32_t)(uint32_t)w->keys[i];
        out_score[at] = score_of(w->keys[i]);
    }
    return u->guess == -INFINITY || (n >= w->k && out_score[w->k - 1] >= u->guess);
}

/* All users' lists, of those that have one not yet; how many must be looked at once more. */
static int64_t finish_all(work *w, one *u, int64_t b, int32_t *out_row, float *out_score) {
    int64_t again = 0;
    for (int64_t i = 0; i <= b; i++) {
        /* while one user's vectors are on their way, another's are scored */
        if (i < b && u[i].user) {
            compact(w, u + i);
            for (int64_t n = 0; n < u[i].count; n++) ahead(w->c, u[i].place[n]);
        }
        if (!i || !u[i - 1].user) continue;
        if (finish(w, u + i - 1, out_row + (i - 1) * w->k, out_score + (i - 1) * w->k)) u[i - 1].user = NULL;
        else again++;
    }
    return again;
}

/* what one register of 16 scores lets pass */
F32 static inline void push(one *u, __mmask16 pass, int32_t first, __m512 score) {
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32(first), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_storeu_si512(u->place + u->count, _mm512_maskz_compress_epi32(pass, at));
    _mm512_storeu_ps(u->score + u->count, _mm512_maskz_compress_ps(pass, score));
    u->count += _mm_popcnt_u32(pass);
}

#define EACH_R(X) X(0) X(1) X(2) X(3) X(4) X(5)

/* Scores of some rows of a group and panels, 64 at a time: `tag` says whose and where. */
typedef struct {
    float score[(HELD * R + 1) * W];
    int32_t tag[HELD * R + 1];
    int64_t count;
} held;

/* what of the held scores passes the floors as they are by now */
F32 static void settle(work *w, one *u, const held *h) {
    for (int64_t n = 0; n < h->count; n++) {
        one *x = u + h->tag[n] % 8;
        if (!x->user) continue;
        int64_t p = w->order[h->tag[n] / 8], before = x->count;
        uint64_t there = (p + 1) * W <= w->c->places ? ~0ull : (1ull << (w->c->places - p * W)) - 1;
        __m512 f = _mm512_set1_ps(x->in->edge[x->lane]);
        uint64_t pass = 0;
        const float *score = h->score + n * W;
        for (int i = 0; i < W; i += 16)
            pass |= (uint64_t)_mm512_cmp_ps_mask(_mm512_load_ps(score + i), f, _CMP_NLT_UQ) << i;
        pass &= there;
        int64_t count = before;
        for (; pass; pass &= pass - 1, count++) {
            int i = __builtin_ctzll(pass);
            x->place[count] = (int32_t)(p * W + i);
            x->score[count] = score[i];
        }
        x->count = count;
        w->pushed += count - before;
        if (x->count > x->full) compact(w, x);
    }
}

/* panels [from, to) of the order for a group; returns the first that no user of the group needs, or `to` */
F32 static int64_t scan32(work *w, one *u, const float *packed, int64_t from, int64_t to, int select) {
    const catalogue *c = w->c;
    const group *in = u->in;
    int64_t d = c->columns;
    held h __attribute__((aligned(64)));
    h.count = 0;
    for (int64_t at = from; at < to; at++) {
        int64_t p = w->order[at];
        __m512d most = _mm512_fmadd_pd(_mm512_loadu_pd(in->norm), _mm512_set1_pd(c->norm[p]), _mm512_set1_pd(TINY));
        if (select && !_mm512_cmp_pd_mask(most, _mm512_loadu_pd(in->floor), _CMP_NLT_UQ)) {
            to = at;
            break;
        }
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
        /* no branch: one in three passes, and which can't be foreseen */
#define HOLD(r)                                                                            \
    {                                                                                      \
        __m512 best = _mm512_max_ps(_mm512_max_ps(a##r, b##r), _mm512_max_ps(c##r, d##r)); \
        float *to_here = h.score + h.count * W;                                            \
        _mm512_store_ps(to_here, a##r);                                                    \
        _mm512_store_ps(to_here + 16, b##r);                                               \
        _mm512_store_ps(to_here + 32, c##r);                                               \
        _mm512_store_ps(to_here + 48, d##r);                                               \
        h.tag[h.count] = (int32_t)(at * 8 + r);                                            \
        h.count += _mm512_cmp_ps_mask(best, _mm512_set1_ps(in->edge[r]), _CMP_NLT_UQ) != 0; \
    }
        EACH_R(HOLD)
        if (h.count > (HELD - 1) * R) {
            settle(w, u, &h);
            h.count = 0;
        }
    }
    settle(w, u, &h);
    return to;
}

I8 static int64_t scan8(work *w, one *u, const int32_t *packed, int64_t from, int64_t to, int select) {
    const catalogue *c = w->c;
    const group *in = u->in;
    int64_t d = (c->columns + 3) / 4;
    for (int64_t at = from; at < to; at++) {
        int64_t p = w->order[at];
        __m512d norm = _mm512_loadu_pd(in->norm), unit = _mm512_mul_pd(_mm512_loadu_pd(in->unit), _mm512_set1_pd(c->unit8[p]));
        __m512d most = _mm512_fmadd_pd(norm, _mm512_set1_pd(c->norm[p]), _mm512_set1_pd(TINY));
        if (select && !_mm512_cmp_pd_mask(most, _mm512_loadu_pd(in->floor), _CMP_NLT_UQ)) return at;
        /* the sum of products is at most the int8 one + norm * error of items + error of the user * norm of their int8
        forms */
        __m512d wrong = _mm512_mul_pd(_mm512_loadu_pd(in->error), _mm512_set1_pd(c->norm8[p]));
        wrong = _mm512_fmadd_pd(norm, _mm512_set1_pd(c->error8[p]), wrong);
        __m512d least = _mm512_mul_pd(_mm512_sub_pd(_mm512_loadu_pd(in->edge8), wrong), unit);
        least = _mm512_sub_pd(least, _mm512_set1_pd(2.0));
        least = _mm512_max_pd(_mm512_min_pd(least, _mm512_set1_pd(2e9)), _mm512_set1_pd(-2e9));
        int32_t floor[8];
        _mm256_storeu_si256((__m256i *)floor, _mm512_cvttpd_epi32(least));
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
#define LEAST(sums) _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), by, less)
#define PASS8(r)                                                                                          \
    {                                                                                                     \
        __m512i f = _mm512_set1_epi32(floor[r]);                                                          \
        __m512i best = _mm512_max_epi32(_mm512_max_epi32(a##r, b##r), _mm512_max_epi32(c##r, d##r));      \
        if (_mm512_cmpgt_epi32_mask(best, f) && u[r].user) {                                              \
            int64_t before = u[r].count;                                                                  \
            /* what it may be above the true one, in fp32 with a little more than its roundings lose */   \
            float off = u[r].norm * c->error8[p] + u[r].error * c->norm8[p];                              \
            off = (off + u[r].norm * c->norm[p] * 0x1p-20 + TINY) * (1 + 0x1p-20);                        \
            __m512 by = _mm512_set1_ps(1 / (u[r].unit * c->unit8[p])), less = _mm512_set1_ps(-off);       \
            u[r].wide = fmax(u[r].wide, 2.0 * off);                                                       \
            push(u + r, _mm512_cmpgt_epi32_mask(a##r, f) & there, p * W, LEAST(a##r));                    \
            push(u + r, _mm512_cmpgt_epi32_mask(b##r, f) & there >> 16, p * W + 16, LEAST(b##r));         \
            push(u + r, _mm512_cmpgt_epi32_mask(c##r, f) & there >> 32, p * W + 32, LEAST(c##r));         \
            push(u + r, _mm512_cmpgt_epi32_mask(d##r, f) & there >> 48, p * W + 48, LEAST(d##r));         \
            w->pushed += u[r].count - before;                                                             \
            if (u[r].count > u[r].full) compact(w, u + r);                                                \
        }                                                                                                 \
    }
        EACH_R(PASS8)
    }
    return to;
}

/* The beginning of a scan; `full`: at so many the floor is raised for the first time. */
static void begin(one *u, int64_t full) {
    u->floor = u->user ? -INFINITY : INFINITY;
    u->guess = -INFINITY;
    u->count = u->fresh = 0;
    u->full = full;
    u->wide = 0;
    u->seen = u->seen_begin;
    tell(u);
}

/* Panels [from, to) of the order, for all groups, tile by tile. */
static void scan(work *w, one *u, const float *packed, const int32_t *packed8, int64_t groups, int64_t from, int64_t to,
                 int64_t tile, int select, int64_t *next) {
    int64_t d = w->c->columns, d4 = (d + 3) / 4;
    for (int64_t g = 0; g < groups; g++) next[g] = from;
    for (int64_t t = from; t < to; t += tile) {
        int64_t end = t + tile < to ? t + tile : to;
        for (int64_t g = 0; g < groups; g++)
            if (next[g] == t)
                next[g] = w->reduced ? scan8(w, u + g * R, packed8 + g * d4 * R, t, end, select)
                                     : scan32(w, u + g * R, packed + g * d * R, t, end, select);
    }
}

/* A block of users. tile: panels that stay in a cache while all users of the block go over them. reduced: by int8;
unit, error: of users' int8 forms `packed8` (groups, D4, R). select 0: no lists, for what the sums alone take.
cap: items that a user may have collected, 2 k + 256 or more; room: 8 (cap + 16) bytes for each user, groups filled up.
told: (2) items that reached a floor, items scored in fp64. Returns 0, or 1 where there is no memory. */
int32_t search(const catalogue *c, const float *user, const float *packed, const int32_t *packed8, const double *norm,
               const double *margin, const double *unit, const double *error, int64_t b, int64_t k,
               const int64_t *seen_ptr, const int32_t *seen, int64_t tile, int64_t reduced, int64_t select,
               int64_t cap, char *room, int32_t *out_row, float *out_score, int64_t *told) {
    int64_t groups = (b + R - 1) / R;
    /* of a sample so small that a guess would cost more than it saves there is none */
    int64_t sampled = c->panels >= SAMPLE * SAMPLE && c->panels * W > 64 * k ? (c->panels + SAMPLE - 1 - SAMPLE / 2) / SAMPLE : 0;
    one *u = calloc(groups * R, sizeof(one));
    group *all = calloc(groups, sizeof(group));
    int64_t *next = calloc(groups, sizeof(int64_t));
    int32_t *order = malloc(c->panels * sizeof(int32_t));
    int32_t *place = (int32_t *)room;
    float *score = (float *)(place + groups * R * (cap + 16));
    work w = {c, k, cap, reduced, k, order, malloc(cap * sizeof(uint64_t)), 0, 0};
    int32_t failed = !u || !all || !next || !order || !w.keys;
    if (!failed) {
        for (int64_t p = 0, first = 0, rest = sampled; p < c->panels; p++) order[sampled && p % SAMPLE == SAMPLE / 2 ? first++ : rest++] = p;
        for (int64_t g = 0; g < groups; g++)
            for (int64_t n = 0; n < 8; n++) all[g].unit[n] = 1, all[g].floor[n] = all[g].edge8[n] = all[g].edge[n] = INFINITY;
        for (int64_t i = 0; i < groups * R; i++) {
            u[i].in = all + i / R;
            u[i].lane = i % R;
            u[i].place = place + i * (cap + 16);
            u[i].score = score + i * (cap + 16);
            if (i < b && norm[i] >= 0) {
                u[i].user = user + i * c->columns;
                u[i].norm = norm[i];
                u[i].margin = margin[i];
                if (reduced) {
                    u[i].unit = unit[i];
                    u[i].error = error[i];
                    u[i].in->unit[i % R] = unit[i];
                    u[i].in->error[i % R] = error[i];
                }
                u[i].in->norm[i % R] = norm[i];
                u[i].seen_begin = seen + seen_ptr[i];
                u[i].seen_end = seen + seen_ptr[i + 1];
            }
            begin(u + i, sampled ? W - 1 : k + 2 * W);
        }
        if (sampled && select) {
            w.floor_k = 6 + 3 * k / (2 * SAMPLE);
            scan(&w, u, packed, packed8, groups, 0, sampled, tile, 1, next);
            for (int64_t i = 0; i < b; i++) {
                if (!u[i].user) continue;
                compact(&w, u + i);
                u[i].guess = u[i].floor;
                u[i].seen = u[i].seen_begin;
            }
            w.floor_k = k;
        }
        scan(&w, u, packed, packed8, groups, select ? sampled : 0, c->panels, tile, select, next);
        if (select && finish_all(&w, u, b, out_row, out_score)) {
            for (int64_t p = 0; p < c->panels; p++) order[p] = p;
            for (int64_t i = 0; i < b; i++) begin(u + i, k + 2 * W);
            scan(&w, u, packed, packed8, groups, 0, c->panels, tile, 1, next);
            finish_all(&w, u, b, out_row, out_score);
        }
        told[0] += w.pushed;
        told[1] += w.scored;
    }
    free(u);
    free(all);
    free(next);
    free(order);
    free(w.keys);
    return failed;
}
