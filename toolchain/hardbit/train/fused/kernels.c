/* The elementwise half of a quantized network in as few passes over memory as there can be, forward and backward:
 *
 *     y = second(first(factor[c] * x + shift[c]) + other)
 *
 * `first` and `second` round to a grid and clip: activation quantizers, ReLU (see `struct clip`). Factor and shift, one
 * of each per channel, are BatchNorm. They may be absent, and so may `other`, the shortcut of a residual block, together
 * with `second`. One byte an element remembers where the straight-through derivative is 1: bit 0 for `first`, bit 1 for
 * `second`.
 *
 * Arrays are dense and none overlaps another. Where there are channels the channel varies fastest (NHWC). Without
 * BatchNorm the result has the bits of the separate operations: one rounding each, half to even, and division is
 * division. bfloat16 is the upper half of a float32; nothing is summed up in it.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum { FLOAT32, BFLOAT16 };
enum { PLAIN, AFFINE, BY_BATCH }; /* no BatchNorm; by running statistics; by those of the batch */

/* code = clip(round((v + offset) / scale), low, high), y = code * scale - offset. The derivative is 1 where the rounded
 * value lies in [low, high] and v > threshold. A ReLU has scale 1, no rounding, low and threshold 0; what does nothing
 * has infinite bounds; offset is for the two levels +-scale / 2. */
struct clip {
    float scale, offset, low, high, threshold;
    int32_t rounds;
};

struct activation {
    const void *x, *other; /* `other` has the type of y; NULL without a shortcut */
    void *y;
    uint8_t *mask;
    int64_t count, channels;
    int32_t x_type, y_type, batch_norm, threads;
    struct clip first, second;
    const float *weight, *bias; /* of BatchNorm, (channels,); NULL for ones and zeros */
    float *mean, *variance;     /* (channels,), the variance over n: read, or written where BY_BATCH */
    float epsilon;
};

struct gradient {
    const void *of_y; /* the type of y; `of_other` too */
    void *of_x;       /* the type of x */
    void *of_other;
    float *of_weight, *of_bias; /* (channels,), written where BY_BATCH, unless NULL */
};

enum { LANES = 1024, BLOCKS_PER_FLUSH = 32 };

/* A block holds whole pixels, so that the channels of all blocks lie alike: the numbers of a channel are repeated along
 * the block, and every loop is a plain loop over vectors. */
static int64_t block_of(int64_t channels)
{
    return channels >= LANES ? channels : LANES / channels * channels;
}

INLINE float load(const void *array, int64_t i, int type)
{
    if (type == FLOAT32)
        return ((const float *)array)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)array)[i] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE void store(void *array, int64_t i, float value, int type)
{
    if (type == FLOAT32) {
        ((float *)array)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    ((uint16_t *)array)[i] = (uint16_t)((value == value ? rounded : bits | 0x400000u) >> 16); /* a NaN stays one */
}

/* Choices are selections, not branches: so the loop around them becomes one of vectors. */
INLINE float quantize(float v, struct clip c, int *inside)
{
    float scaled = (v + c.offset) / c.scale;
    float rounded = nearbyintf(scaled);
    float code = c.rounds ? rounded : scaled;
    *inside = (code <= c.high) & (code >= c.low) & (v > c.threshold);
    code = code > c.high ? c.high : code;
    code = code < c.low ? c.low : code;
    return code * c.scale - c.offset;
}

INLINE void forward_block(const struct activation *a, const float *factor, const float *shift, int64_t begin,
                          int64_t end, int x_type, int y_type, int affine, int joins)
{
    const void *x = a->x, *other = a->other;
    void *y = a->y;
    uint8_t *mask = a->mask;
    struct clip first = a->first, second = a->second;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float value = load(x, i, x_type);
        int bits, inside;
        if (affine)
            value = value * factor[i - begin] + shift[i - begin];
        value = quantize(value, first, &bits);
        if (joins) {
            value = quantize(value + load(other, i, y_type), second, &inside);
            bits |= inside << 1;
        }
        mask[i] = (uint8_t)bits;
        store(y, i, value, y_type);
    }
}

/* of_x = slope * g + tilt * x + offset, g what passes both masks */
INLINE void backward_block(const struct activation *a, const struct gradient *d, const float *slope, const float *tilt,
                           const float *offset, int64_t begin, int64_t end, int x_type, int y_type, int batch_norm,
                           int joins)
{
    const void *x = a->x, *of_y = d->of_y;
    void *of_x = d->of_x, *of_other = d->of_other;
    const uint8_t *mask = a->mask;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float g = load(of_y, i, y_type);
        if (joins) {
            g = mask[i] & 2 ? g : 0.0f;
            store(of_other, i, g, y_type);
        }
        g = mask[i] & 1 ? g : 0.0f;
        if (batch_norm != PLAIN)
            g *= slope[i - begin];
        if (batch_norm == BY_BATCH)
            g += tilt[i - begin] * load(x, i, x_type) + offset[i - begin];
        store(of_x, i, g, x_type);
    }
}

/* Adds (x, x * x) of a block to `sums`, or (g, g * x) where there is a gradient. */
INLINE void sum_block(const struct activation *a, const struct gradient *d, float *sums, int64_t block, int64_t begin,
                      int64_t end, int x_type, int y_type, int backward)
{
    const void *x = a->x, *of_y = backward ? d->of_y : a->x;
    const uint8_t *mask = a->mask;
    int passing = a->other ? 3 : 1;
    float *of_values = sums, *of_products = sums + block;
#pragma omp simd
    for (int64_t i = begin; i < end; i++) {
        float value = load(x, i, x_type), g = value;
        if (backward)
            g = (mask[i] & passing) == passing ? load(of_y, i, y_type) : 0.0f;
        of_values[i - begin] += g;
        of_products[i - begin] += g * value;
    }
}

/* FUNCTION(..., type of x, type of y), the types as constants. */
#define WITH_TYPES(a, FUNCTION, ...)                                                                                   \
    switch ((a)->x_type * 2 + (a)->y_type) {                                                                           \
    case 0: FUNCTION(__VA_ARGS__, FLOAT32, FLOAT32); break;                                                            \
    case 1: FUNCTION(__VA_ARGS__, FLOAT32, BFLOAT16); break;                                                           \
    case 2: FUNCTION(__VA_ARGS__, BFLOAT16, FLOAT32); break;                                                           \
    default: FUNCTION(__VA_ARGS__, BFLOAT16, BFLOAT16);                                                                \
    }

#define FORWARD(AFFINE, JOINS, X, Y) forward_block(a, factor, shift, begin, end, X, Y, AFFINE, JOINS)
#define BACKWARD(NORM, JOINS, X, Y) backward_block(a, d, slope, tilt, offset, begin, end, X, Y, NORM, JOINS)
#define SUM(BACK, X, Y) sum_block(a, d, lanes, block, begin, end, X, Y, BACK)

static void forward_of(const struct activation *a, const float *factor, const float *shift, int64_t begin, int64_t end)
{
    switch ((a->batch_norm != PLAIN) * 2 + (a->other != NULL)) {
    case 0: WITH_TYPES(a, FORWARD, 0, 0) break;
    case 1: WITH_TYPES(a, FORWARD, 0, 1) break;
    case 2: WITH_TYPES(a, FORWARD, 1, 0) break;
    default: WITH_TYPES(a, FORWARD, 1, 1)
    }
}

static void backward_of(const struct activation *a, const struct gradient *d, const float *slope, const float *tilt,
                        const float *offset, int64_t begin, int64_t end)
{
    switch (a->batch_norm * 2 + (a->other != NULL)) {
    case 0: WITH_TYPES(a, BACKWARD, PLAIN, 0) break;
    case 1: WITH_TYPES(a, BACKWARD, PLAIN, 1) break;
    case 2: WITH_TYPES(a, BACKWARD, AFFINE, 0) break;
    case 3: WITH_TYPES(a, BACKWARD, AFFINE, 1) break;
    case 4: WITH_TYPES(a, BACKWARD, BY_BATCH, 0) break;
    default: WITH_TYPES(a, BACKWARD, BY_BATCH, 1)
    }
}

static void sum_of(const struct activation *a, const struct gradient *d, float *lanes, int64_t block, int64_t begin,
                   int64_t end)
{
    if (d)
        WITH_TYPES(a, SUM, 1)
    else
        WITH_TYPES(a, SUM, 0)
}

/* Lanes of float32 over a few blocks, then double: `totals` (2 * channels,) gets both sums per channel. */
static void sum_part(const struct activation *a, const struct gradient *d, int64_t first, int64_t last, float *lanes,
                     double *totals)
{
    int64_t channels = a->channels, block = block_of(channels);
    for (int64_t i = first; i < last; i += BLOCKS_PER_FLUSH) {
        int64_t stop = i + BLOCKS_PER_FLUSH < last ? i + BLOCKS_PER_FLUSH : last;
        memset(lanes, 0, sizeof(float) * 2 * block);
        for (int64_t j = i; j < stop; j++) {
            int64_t begin = j * block, end = begin + block < a->count ? begin + block : a->count;
            sum_of(a, d, lanes, block, begin, end);
        }
        for (int64_t pixel = 0; pixel < block; pixel += channels)
            for (int64_t c = 0; c < channels; c++) {
                totals[c] += lanes[pixel + c];
                totals[channels + c] += lanes[block + pixel + c];
            }
    }
}

/* Sums per channel over all pixels into `totals` (2 * channels,), the same ones at the same number of threads. */
static int sum_channels(const struct activation *a, const struct gradient *d, double *totals)
{
    int64_t channels = a->channels, block = block_of(channels), blocks = (a->count + block - 1) / block;
    int parts = a->threads;
    double *partial = calloc((size_t)(parts * 2 * channels), sizeof(double));
    float *lanes = malloc(sizeof(float) * (size_t)(parts * 2 * block));
    if (partial && lanes) {
#pragma omp parallel for num_threads(parts) if (parts > 1) schedule(static)
        for (int part = 0; part < parts; part++)
            sum_part(a, d, blocks * part / parts, blocks * (part + 1) / parts, lanes + part * 2 * block,
                     partial + part * 2 * channels);
        for (int64_t i = 0; i < 2 * channels; i++) {
            totals[i] = 0.0;
            for (int part = 0; part < parts; part++)
                totals[i] += partial[part * 2 * channels + i];
        }
    }
    int failed = !partial || !lanes;
    free(partial);
    free(lanes);
    return failed;
}

static int measure(const struct activation *a)
{
    double *totals = malloc(sizeof(double) * (size_t)(2 * a->channels)), pixels = (double)(a->count / a->channels);
    int failed = !totals || sum_channels(a, NULL, totals);
    for (int64_t c = 0; c < a->channels && !failed; c++) {
        double mean = totals[c] / pixels, variance = totals[a->channels + c] / pixels - mean * mean;
        a->mean[c] = (float)mean;
        a->variance[c] = variance > 0.0 ? (float)variance : 0.0f * (float)variance; /* a NaN stays one */
    }
    free(totals);
    return failed;
}

static double weight_over_deviation(const struct activation *a, int64_t c)
{
    return (a->weight ? a->weight[c] : 1.0f) / sqrt((double)a->variance[c] + a->epsilon);
}

static void repeat(float *row, int64_t channels, int64_t block)
{
    for (int64_t i = channels; i < block; i++)
        row[i] = row[i - channels];
}

/* y and mask of `a`; returns 0, or 1 where memory ran out. */
int activate(const struct activation *a)
{
    int64_t channels = a->channels, block = block_of(channels);
    float *factor = NULL, *shift = NULL;
    if (a->batch_norm != PLAIN) {
        factor = malloc(sizeof(float) * (size_t)(2 * block));
        if (!factor || (a->batch_norm == BY_BATCH && measure(a))) {
            free(factor);
            return 1;
        }
        shift = factor + block;
        for (int64_t c = 0; c < channels; c++) {
            factor[c] = (float)weight_over_deviation(a, c);
            shift[c] = (float)((a->bias ? a->bias[c] : 0.0f) - a->mean[c] * weight_over_deviation(a, c));
        }
        repeat(factor, channels, block);
        repeat(shift, channels, block);
    }
#pragma omp parallel for num_threads(a->threads) if (a->threads > 1) schedule(static)
    for (int64_t begin = 0; begin < a->count; begin += block)
        forward_of(a, factor, shift, begin, begin + block < a->count ? begin + block : a->count);
    free(factor);
    return 0;
}

/* With xhat = (x - mean) / deviation and g what reaches BatchNorm's result, over n pixels of a channel:
 * of_bias = sum g, of_weight = sum g xhat, of_x = (weight / deviation) (g - of_bias / n - xhat of_weight / n). */
static int differentiate(const struct activation *a, const struct gradient *d, float *slope, float *tilt, float *offset)
{
    int64_t channels = a->channels;
    double *totals = malloc(sizeof(double) * (size_t)(2 * channels)), pixels = (double)(a->count / channels);
    int failed = !totals || sum_channels(a, d, totals);
    for (int64_t c = 0; c < channels && !failed; c++) {
        double inverse = 1.0 / sqrt((double)a->variance[c] + a->epsilon), mean = a->mean[c];
        double of_bias = totals[c], of_weight = inverse * (totals[channels + c] - mean * of_bias);
        tilt[c] = (float)(-slope[c] * inverse * of_weight / pixels);
        offset[c] = (float)(-slope[c] * of_bias / pixels + slope[c] * inverse * of_weight / pixels * mean);
        if (d->of_weight)
            d->of_weight[c] = (float)of_weight;
        if (d->of_bias)
            d->of_bias[c] = (float)of_bias;
    }
    free(totals);
    return failed;
}

/* The gradients `d` of what `activate` computed for the same `a`; returns 0, or 1 where memory ran out. */
int activate_backward(const struct activation *a, const struct gradient *d)
{
    int64_t channels = a->channels, block = block_of(channels);
    float *slope = NULL, *tilt = NULL, *offset = NULL;
    if (a->batch_norm != PLAIN) {
        slope = malloc(sizeof(float) * (size_t)(3 * block));
        if (!slope)
            return 1;
        tilt = slope + block, offset = tilt + block;
        for (int64_t c = 0; c < channels; c++)
            slope[c] = (float)weight_over_deviation(a, c);
        if (a->batch_norm == BY_BATCH && differentiate(a, d, slope, tilt, offset)) {
            free(slope);
            return 1;
        }
        repeat(slope, channels, block);
        if (a->batch_norm == BY_BATCH) {
            repeat(tilt, channels, block);
            repeat(offset, channels, block);
        }
    }
#pragma omp parallel for num_threads(a->threads) if (a->threads > 1) schedule(static)
    for (int64_t begin = 0; begin < a->count; begin += block)
        backward_of(a, d, slope, tilt, offset, begin, begin + block < a->count ? begin + block : a->count);
    free(slope);
    return 0;
}
