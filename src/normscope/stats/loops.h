/* The loops of `_reading.c`, which know numbers alone: cells, counts, moments, ranges and codes of contiguous values. */

#define BINS 2048
#define CELLS (BINS + 4)         /* as in `sketch`: bins, then exact zeros, NaN, +inf, -inf */
#define MOST ((1 << 18) - 4)     /* elements: a quarter of them still fits 16 bits */
#define NUMBERS 9                /* of a digest: count, mean, M2, low, high, zeros, NaN, +inf, -inf */
#define LONGEST (3 * BINS)       /* bytes of a code: of that many elements few bins hold more than two bytes can tell */
#define LANES 32                 /* sums that go side by side */
#define ZEROS 16                 /* places where zeros are counted: of many, one after the other, none waits for another */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTOR
#endif

static float of_float16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, mantissa = bits & 1023, told;
    float value;
    if (exponent == 31)
        told = sign | 0x7f800000 | mantissa << 13;
    else if (exponent)
        told = sign | (exponent + 112) << 23 | mantissa << 13;
    else { /* a multiple of 2^-24 */
        value = (float)mantissa * 5.9604644775390625e-8f;
        memcpy(&told, &value, 4);
        told |= sign;
    }
    memcpy(&value, &told, 4);
    return value;
}

static float of_bfloat16(uint16_t bits) {
    uint32_t told = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &told, 4);
    return value;
}

typedef struct { /* of one thread, written anew for each sample */
    uint16_t parts[4][CELLS + ZEROS], *cells;
    uint32_t counts[CELLS + ZEROS];
    void *values; /* what is left of a sample when something was taken off */
} Desk;

/* How many elements each cell has. Four at a time, so that none waits for the one before. */
VECTOR static void tally(const uint16_t *cells, Py_ssize_t count, Desk *desk) {
    Py_ssize_t i = 0;
    memset(desk->parts, 0, sizeof desk->parts);
    for (; i + 4 <= count; i += 4)
        for (int part = 0; part < 4; part++) desk->parts[part][cells[i + part]]++;
    for (; i < count; i++) desk->parts[0][cells[i]]++;
    for (int cell = 0; cell < CELLS + ZEROS; cell++)
        desk->counts[cell] = (uint32_t)desk->parts[0][cell] + desk->parts[1][cell] + desk->parts[2][cell] + desk->parts[3][cell];
    for (int zero = 0; zero < ZEROS; zero++) desk->counts[BINS] += desk->counts[CELLS + zero];
}

/* The cell of each element; and mean, M2 and range of finite values, moments by two passes in float64.

   The bits of a float, those of a negative one turned around, are integers in the order of the values; and the least
   of integers is found by vector code, which the least of floats is not. */
#define LOOPS(Float, Bits, cells_of, moments_of, finite_of, less_of, MANTISSA, INFINITE, LARGEST)                      \
    VECTOR static void cells_of(const Float *x, Py_ssize_t count, uint16_t *cells) {                                   \
        const Bits first = ((INFINITE >> MANTISSA) / 2 - 32) * 16;                                                     \
        Bits most = 0;                                                                                                 \
        for (Bits i = 0; i < (Bits)count; i++) { /* as wide as what it counts, for the vector code */                  \
            Bits bits;                                                                                                 \
            memcpy(&bits, x + i, sizeof bits);                                                                         \
            Bits magnitude = bits & LARGEST, cell = magnitude >> (MANTISSA - 4);                                       \
            most = magnitude > most ? magnitude : most;                                                                \
            cell = (cell < first ? first : cell > first + 1023 ? first + 1023 : cell) - first;                         \
            cell += bits >> (8 * sizeof bits - 1) & 1024;                                                              \
            cells[i] = (uint16_t)(magnitude == 0 ? CELLS + (i & (ZEROS - 1)) : cell);                                  \
        }                                                                                                              \
        for (Py_ssize_t i = 0; most >= INFINITE && i < count; i++) {                                                   \
            Bits bits;                                                                                                 \
            memcpy(&bits, x + i, sizeof bits);                                                                         \
            if ((bits & LARGEST) >= INFINITE)                                                                          \
                cells[i] = (bits & LARGEST) > INFINITE ? BINS + 1 : bits > 0 ? BINS + 2 : BINS + 3;                    \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    VECTOR static void moments_of(const Float *x, Py_ssize_t count, double *numbers) {                                 \
        double sums[LANES] = {0}, squares[LANES] = {0}, total = 0, m2 = 0;                                             \
        Bits low = LARGEST, high = -LARGEST - 1;                                                                       \
        Float ends[2];                                                                                                 \
        Py_ssize_t i = 0;                                                                                              \
        for (; i + LANES <= count; i += LANES)                                                                         \
            for (int lane = 0; lane < LANES; lane++) sums[lane] += x[i + lane];                                        \
        for (; i < count; i++) total += x[i];                                                                          \
        for (int lane = 0; lane < LANES; lane++) total += sums[lane];                                                  \
        const double mean = total / (double)count;                                                                     \
        for (i = 0; i + LANES <= count; i += LANES)                                                                    \
            for (int lane = 0; lane < LANES; lane++) {                                                                 \
                double deviation = x[i + lane] - mean;                                                                 \
                squares[lane] += deviation * deviation;                                                                \
            }                                                                                                          \
        for (; i < count; i++) m2 += (x[i] - mean) * (x[i] - mean);                                                    \
        for (int lane = 0; lane < LANES; lane++) m2 += squares[lane];                                                  \
        for (i = 0; i < count; i++) {                                                                                  \
            Bits bits;                                                                                                 \
            memcpy(&bits, x + i, sizeof bits);                                                                         \
            bits ^= bits < 0 ? LARGEST : 0;                                                                            \
            low = bits < low ? bits : low;                                                                             \
            high = bits > high ? bits : high;                                                                          \
        }                                                                                                              \
        low ^= low < 0 ? LARGEST : 0, high ^= high < 0 ? LARGEST : 0;                                                  \
        memcpy(ends, &low, sizeof low), memcpy(ends + 1, &high, sizeof high);                                          \
        numbers[1] = mean, numbers[2] = m2, numbers[3] = ends[0], numbers[4] = ends[1];                                \
    }                                                                                                                  \
                                                                                                                       \
    /* The finite elements, in order, to `kept`, where `x` may lie as well. */                                         \
    static void finite_of(const Float *x, Py_ssize_t count, Float *kept) {                                             \
        for (Py_ssize_t i = 0; i < count; i++)                                                                         \
            if (x[i] - x[i] == 0) *kept++ = x[i];                                                                      \
    }                                                                                                                  \
                                                                                                                       \
    static const Float *less_of(const Float *x, const Float *before, Py_ssize_t count, Float *out) {                   \
        for (Py_ssize_t i = 0; i < count; i++) out[i] = x[i] - before[i];                                              \
        return out;                                                                                                    \
    }

LOOPS(float, int32_t, cells32, moments32, finite32, less32, 23, 0x7f800000, INT32_MAX)
LOOPS(double, int64_t, cells64, moments64, finite64, less64, 52, 0x7ff0000000000000, INT64_MAX)

static char *varint(char *code, uint32_t value) {
    for (; value >= 128; value >>= 7) *code++ = (char)(value | 128);
    *code++ = (char)value;
    return code;
}

/* As `code.encode`: runs of filled bins, each told by the empty bins before it, its length, and its counts. */
static int encoded(const uint32_t *counts, char *code) {
    char *at = code;
    for (int first = 0, end = 0;; first = end) {
        while (first + 4 <= BINS && !(counts[first] | counts[first + 1] | counts[first + 2] | counts[first + 3])) first += 4;
        while (first < BINS && !counts[first]) first++;
        if (first == BINS) return (int)(at - code);
        at = varint(at, first - end);
        for (end = first; end < BINS && counts[end]; end++)
            ;
        at = varint(at, end - first);
        for (int bin = first; bin < end; bin++) at = varint(at, counts[bin]);
    }
}

#define BY_CHANNEL(Float)                                                                                              \
    do {                                                                                                               \
        const Float *x = values;                                                                               \
        for (Py_ssize_t i = 0; i < cells; i++)                                                                         \
            for (Py_ssize_t j = 0; j < width; j++) {                                                                   \
                double value = x[i * width + j];                                                                       \
                int kept = value - value == 0;                                                                         \
                seen[j] += kept;                                                                                       \
                mean[j] += kept ? value : 0;                                                                           \
            }                                                                                                          \
        for (Py_ssize_t j = 0; j < width; j++) mean[j] = seen[j] ? mean[j] / seen[j] : Py_NAN;                         \
        for (Py_ssize_t i = 0; i < cells; i++)                                                                         \
            for (Py_ssize_t j = 0; j < width; j++) {                                                                   \
                double value = x[i * width + j], deviation = value - mean[j];                                          \
                m2[j] += value - value == 0 ? deviation * deviation : 0;                                               \
            }                                                                                                          \
    } while (0)

/* Count, mean and M2 of the finite values of each column of (cells, width) `values`; `moments` (3, width) begin at 0. */
static void by_channel(const void *values, int wide, Py_ssize_t cells, Py_ssize_t width, double *moments) {
    double *seen = moments, *mean = moments + width, *m2 = moments + 2 * width;
    if (wide) BY_CHANNEL(double);
    else BY_CHANNEL(float);
}
