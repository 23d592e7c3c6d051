/* What one core can multiply: the fastest of several short loops of nothing but independent multiply-adds.
   Prints billions of int8 and of fp32 operations per CPU second; a multiplication and an addition are two. */
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { CHAINS = 12, TURNS = 400000, TRIES = 12 };

#if defined(__AVX512VNNI__)
typedef __m512i ints;
#define INT8 128
#define MULTIPLY(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
#elif defined(__AVXVNNI__)
typedef __m256i ints;
#define INT8 64
#define MULTIPLY(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
#else
typedef __m256i ints;
#define INT8 64
#define MULTIPLY(sum, a, b) \
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
#endif

#if defined(__AVX512F__)
typedef __m512 floats;
#define FP32 32
#define FUSED(sum, a, b) _mm512_fmadd_ps(a, b, sum)
#else
typedef __m256 floats;
#define FP32 16
#define FUSED(sum, a, b) _mm256_fmadd_ps(a, b, sum)
#endif

static double cpu(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

#define FASTEST(type, step, operations, best)                                                      \
    for (int trial = 0; trial < TRIES; trial++) {                                                  \
        type sums[CHAINS] = {0}, a = {0}, b = {0};                                                 \
        double began = cpu();                                                                      \
        for (int turn = 0; turn < TURNS; turn++) {                                                 \
            for (int i = 0; i < CHAINS; i++) {                                                     \
                __asm__ volatile("" : "+v"(a), "+v"(b)); /* or it would be computed once */        \
                sums[i] = step(sums[i], a, b);                                                     \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < CHAINS; i++) __asm__ volatile("" : : "v"(sums[i]));                    \
        double speed = 1e-9 * CHAINS * TURNS * operations / (cpu() - began);                       \
        best = speed > best ? speed : best;                                                        \
    }

int main(void) {
    double int8 = 0, fp32 = 0;
    FASTEST(ints, MULTIPLY, INT8, int8)
    FASTEST(floats, FUSED, FP32, fp32)
    printf("%f %f\n", int8, fp32);
    return 0;
}
