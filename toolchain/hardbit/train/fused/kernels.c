/* Fake quantization in one pass, forward and backward.
 *
 * An activation quantizer computes code = clip(round(x / scale), low, high) and gives code * scale, behind a ReLU or not.
 * Its straight-through derivative is 1 where the rounded value was inside [low, high] (and x > 0 behind a ReLU), else 0;
 * one byte an element keeps which. As separate operations this is a dozen passes over memory, here it is one.
 *
 * Arrays are dense and of `count` elements, in any order, the same for all arguments. Division is division, not a
 * multiplication by the reciprocal, and rounding is half to even, so float32 results have the bits of the separate
 * operations. `smooth` leaves the rounding out. bfloat16 is the upper half of a float32; results are rounded half to even.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bfloat16;

static inline float from_bfloat16(bfloat16 value)
{
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline bfloat16 to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bfloat16)(value == value ? rounded : (bits >> 16) | 0x40u); /* a NaN stays one */
}

static inline float same(float value)
{
    return value;
}

#define QUANTIZE(NAME, FROM, TO, READ, WRITE)                                                                          \
    void NAME(const FROM *x, TO *y, uint8_t *mask, int64_t count, float scale, float low, float high, int relu,        \
              int smooth, int threads)                                                                                 \
    {                                                                                                                  \
        _Pragma("omp parallel for simd num_threads(threads) if (threads > 1) schedule(static)")                       \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            float value = READ(x[i]);                                                                                  \
            float positive = relu && value <= 0.0f ? 0.0f : value;                                                     \
            float scaled = positive / scale;                                                                           \
            float code = smooth ? scaled : nearbyintf(scaled);                                                         \
            mask[i] = (uint8_t)((code <= high) & (code >= low) & ((relu == 0) | (value > 0.0f)));                      \
            code = code > high ? high : code;                                                                          \
            code = code < low ? low : code;                                                                            \
            y[i] = WRITE(code * scale);                                                                                \
        }                                                                                                              \
    }

QUANTIZE(quantize_f32_f32, float, float, same, same)
QUANTIZE(quantize_f32_bf16, float, bfloat16, same, to_bfloat16)
QUANTIZE(quantize_bf16_bf16, bfloat16, bfloat16, from_bfloat16, to_bfloat16)

#define PASS(NAME, FROM, TO, READ)                                                                                     \
    void NAME(const FROM *gradient, const uint8_t *mask, TO *result, int64_t count, int threads)                       \
    {                                                                                                                  \
        _Pragma("omp parallel for simd num_threads(threads) if (threads > 1) schedule(static)")                       \
        for (int64_t i = 0; i < count; i++)                                                                            \
            result[i] = mask[i] ? READ(gradient[i]) : 0;                                                               \
    }

PASS(pass_f32_f32, float, float, same)
PASS(pass_bf16_f32, bfloat16, float, from_bfloat16)
PASS(pass_bf16_bf16, bfloat16, bfloat16, (bfloat16))
