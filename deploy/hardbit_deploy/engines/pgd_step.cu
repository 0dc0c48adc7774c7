// One step of projected gradient descent where the engine runs: judge an iterate, keep the best, move to the next.
//
// An iterate is int8 codes, byte - 128, as the engine and the attack graph read them. `pixels` are the images that are
// attacked, as bytes. Every array is (rows, values), an image a row; `standing` is 1 for images that keep their label.
//
// Arithmetic and order are those of hardbit_deploy.attacks.iterates: in integers for L-inf, to the bit; for L2 in
// float32 with sums in float64, which only differ in the order of the sums. Products and sums are written as
// intrinsics, so that no compiler joins them to one rounding. Launched with blocks of a power of two threads, at most
// MAX_THREADS; the judge and L2 take one block for each row.
//
// Boundary: knows nothing of networks; who runs what between these kernels is decided by device_pgd.py.

#define MAX_THREADS 256
#define UNIT 64  // the shadow of an iterate in a box, in parts of a grey level
#define SHIFT 6
#define SHRINK_ROUNDS 8
#define MIDDLE 128
#define INFINITE __int_as_float(0x7f800000)
#define NO_NUMBER __int_as_float(0x7fc00000)

// Read on the device, so that a captured graph serves every climb; as numpy packs it in device_pgd.py.
struct ClimbSettings {
    int rows;        // images of the climb; rows from there on fill up the batch
    int radius;      // of the box, in whole grey levels
    int size_units;  // L-inf: the step in 1/64 grey level
    float size_255;  // L2: the step in grey levels
    double eps_255;  // L2: the radius that bytes must keep
    double inside_255;  // L2: the radius that the shadow keeps, smaller by more than float32 can be wrong
};

__device__ static double block_sum(double own, double *shared) {
    const int thread = threadIdx.x;
    shared[thread] = own;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half) shared[thread] += shared[thread + half];
        __syncthreads();
    }
    const double sum = shared[0];
    __syncthreads();
    return sum;
}

__device__ static bool is_finite(float value) { return fabsf(value) < INFINITE; }

__device__ static signed char code_of(int byte) { return (signed char)(byte - MIDDLE); }

extern "C" __global__ void begin_climb(const ClimbSettings *settings, float *best_margin, unsigned char *standing,
                                       int batch) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= batch) return;
    best_margin[row] = INFINITE;
    standing[row] = row < settings->rows;
}

extern "C" __global__ void begin_linf(const signed char *iterate, short *shadow, int values) {
    const int value = blockIdx.x * blockDim.x + threadIdx.x;
    if (value >= values) return;
    const size_t place = (size_t)blockIdx.y * values + value;
    shadow[place] = (short)((iterate[place] + MIDDLE) * UNIT);
}

extern "C" __global__ void begin_l2(const signed char *iterate, const unsigned char *pixels, float *delta, int values) {
    const int value = blockIdx.x * blockDim.x + threadIdx.x;
    if (value >= values) return;
    const size_t place = (size_t)blockIdx.y * values + value;
    delta[place] = (float)(iterate[place] + MIDDLE - pixels[place]);
}

// Keep the iterate if it is the first that lost its label, else if its margin is lower than all before.
extern "C" __global__ void judge(const float *logits, const int *labels, const signed char *iterate, int classes,
                                 int values, unsigned char *standing, float *best_margin, float *best_logits,
                                 signed char *best_iterate) {
    __shared__ float largest[MAX_THREADS];
    __shared__ int broken, tied;
    const int row = blockIdx.x, thread = threadIdx.x;
    if (!standing[row]) return;
    const int label = labels[row];
    const float *row_logits = logits + (size_t)row * classes;
    const float own = row_logits[label];
    if (thread == 0) broken = tied = 0;
    __syncthreads();
    float most = -INFINITE;
    for (int other = thread; other < classes; other += blockDim.x) {
        const float logit = row_logits[other];
        if (logit != logit) broken = 1;
        if (other == label) continue;
        if (logit > most) most = logit;
        if (other < label && logit == own) tied = 1;  // of equal logits the first names the label
    }
    largest[thread] = most;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (thread < half && largest[thread + half] > largest[thread]) largest[thread] = largest[thread + half];
        __syncthreads();
    }
    most = largest[0];
    const float margin = broken ? NO_NUMBER : __fsub_rn(own, most);
    const bool kept = is_finite(margin) && own >= most && !(own == most && tied);
    const bool better = !kept || margin < best_margin[row];
    __syncthreads();
    if (!better) return;
    for (int value = thread; value < values; value += blockDim.x)
        best_iterate[(size_t)row * values + value] = iterate[(size_t)row * values + value];
    for (int other = thread; other < classes; other += blockDim.x)
        best_logits[(size_t)row * classes + other] = row_logits[other];
    if (thread == 0) {
        best_margin[row] = margin;
        standing[row] = kept;
    }
}

extern "C" __global__ void step_linf(const ClimbSettings *settings, const float *gradient, const unsigned char *pixels,
                                     const unsigned char *standing, const signed char *iterate, int values,
                                     short *shadow, signed char *next) {
    const int value = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (value >= values) return;
    const size_t place = (size_t)row * values + value;
    if (!standing[row]) {
        next[place] = iterate[place];
        return;
    }
    const int low = max((int)pixels[place] - settings->radius, 0) * UNIT;
    const int high = min((int)pixels[place] + settings->radius, 255) * UNIT;
    const int sign = (gradient[place] > 0.0f) - (gradient[place] < 0.0f);  // 0 for NaN
    const int position = min(max(shadow[place] + sign * settings->size_units, low), high);
    shadow[place] = (short)position;
    next[place] = code_of((position + UNIT / 2) >> SHIFT);
}

extern "C" __global__ void step_l2(const ClimbSettings *settings, const float *gradient, const unsigned char *pixels,
                                   const unsigned char *standing, const signed char *iterate, int values, float *delta,
                                   signed char *next) {
    __shared__ double shared[MAX_THREADS];
    const int row = blockIdx.x, thread = threadIdx.x;
    const size_t first = (size_t)row * values;
    gradient += first, pixels += first, iterate += first, delta += first, next += first;
    if (!standing[row]) {
        for (int value = thread; value < values; value += blockDim.x) next[value] = iterate[value];
        return;
    }

    double own = 0.0;
    for (int value = thread; value < values; value += blockDim.x)
        if (is_finite(gradient[value])) own += (double)gradient[value] * gradient[value];
    const double norm = sqrt(block_sum(own, shared));
    const float divisor = norm > 0.0 ? (float)norm : 1.0f;  // a row that says nothing stays where it is

    own = 0.0;
    for (int value = thread; value < values; value += blockDim.x) {
        const float slope = is_finite(gradient[value]) ? gradient[value] : 0.0f;
        const float moved = __fmul_rn(__fdiv_rn(slope, divisor), settings->size_255);
        delta[value] = __fadd_rn(delta[value], moved);
        own += (double)delta[value] * delta[value];
    }
    double squares = block_sum(own, shared);
    const double inside = settings->inside_255, eps = settings->eps_255;
    const float shorter = squares > inside * inside ? (float)(inside / sqrt(fmax(squares, 1e-30))) : 1.0f;

    own = 0.0;
    for (int value = thread; value < values; value += blockDim.x) {
        const float pixel = pixels[value];
        delta[value] = fminf(fmaxf(__fmul_rn(delta[value], shorter), -pixel), 255.0f - pixel);
        const double rounded = rintf(delta[value]);
        own += rounded * rounded;
    }
    squares = block_sum(own, shared);

    // Rounding can lengthen a row: scale it down until the rounded row fits.
    double scale = 1.0;
    for (int round = 0; round < SHRINK_ROUNDS && squares > eps * eps; ++round) {
        scale *= eps / sqrt(squares);
        own = 0.0;
        for (int value = thread; value < values; value += blockDim.x) {
            const double rounded = rintf(__fmul_rn(delta[value], (float)scale));
            own += rounded * rounded;
        }
        squares = block_sum(own, shared);
    }
    const bool fits = squares <= eps * eps;
    for (int value = thread; value < values; value += blockDim.x) {
        const float moved = fits ? rintf(__fmul_rn(delta[value], (float)scale)) : truncf(delta[value]);
        next[value] = code_of((int)pixels[value] + (int)moved);
    }
}
