/* vae-runtime in one source file: see vae_runtime.h, and README.md beside it.
 *
 * Sections: errors and memory; hashes; noise; JSON; the manifest's schema; the manifest; files; graphs; .npz files;
 * ONNX Runtime; arguments; the prior; calls; public functions.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* SEEK_HOLE */
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE
#endif
#if !defined(_WIN32) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#ifdef _WIN32
#define _CRT_SECURE_NO_WARNINGS
#endif

#include "vae_runtime.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

#ifdef _WIN32
#include <io.h>
#include <windows.h>
#else
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>
#endif

#include "ort_api.h"

/* The bits of numbers are part of the format: sums and products are each rounded once, to their own type. */
#if FLT_EVAL_METHOD != 0
#error "vae-runtime: expected arithmetic in the type of the operands; on x86, compile with -msse2 -mfpmath=sse"
#endif
#ifdef __FAST_MATH__
#error "vae-runtime: expected IEEE arithmetic; compile without -ffast-math"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "vae-runtime: expected a little-endian machine"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
/* gcc has no such pragma: compile with -ffp-contract=off, which -std=c99 implies. vae_open checks it. */

#if defined(_MSC_VER)
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL __thread
#endif
#if defined(__GNUC__)
#define LIKE_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define LIKE_PRINTF(text, first)
#endif

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---------------------------------------------------------------------------------------------- errors and memory */

static THREAD_LOCAL char last_error[1024];

const char *vae_last_error(void) { return last_error; }

/* The length of a UTF-8 sequence; 0 where the bytes are none. */
static size_t utf8_length(const unsigned char *text, size_t left) {
    if (!left) return 0;
    unsigned first = text[0];
    size_t length = first < 0x80                    ? 1
                    : first >= 0xC2 && first < 0xE0 ? 2
                    : first >= 0xE0 && first < 0xF0 ? 3
                    : first >= 0xF0 && first < 0xF5 ? 4
                                                    : 0;
    if (!length || length > left) return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xC0) != 0x80) return 0;
    if ((first == 0xE0 && text[1] < 0xA0) || (first == 0xED && text[1] > 0x9F)) return 0; /* long forms, surrogates */
    if ((first == 0xF0 && text[1] < 0x90) || (first == 0xF4 && text[1] > 0x8F)) return 0;
    return length;
}

/* Whether a character of a bundle could forge a line or steer a terminal: controls, line and direction marks. */
static int is_control(const unsigned char *text, size_t length) {
    if (length == 1) return text[0] < 0x20 || text[0] == 0x7F;
    if (length == 2) return text[0] == 0xC2 && text[1] < 0xA0;
    if (length != 3 || text[0] != 0xE2) return 0;
    return (text[1] == 0x80 && (text[2] >= 0xA8 && text[2] <= 0xAE)) || (text[1] == 0x81 && text[2] >= 0xA0);
}

/* Keep the message of an error, in one printable line, and return its status. */
LIKE_PRINTF(2, 3) static vae_status fail(vae_status status, const char *format, ...) {
    char line[sizeof last_error];
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    size_t length = written < 0 ? 0 : (size_t)written < sizeof line ? (size_t)written : sizeof line - 1;
    while (length && line[length - 1] == '\n') length--;
    for (size_t at = 0; at < length;) {
        unsigned char *text = (unsigned char *)line + at;
        size_t step = utf8_length(text, length - at);
        if (!step || is_control(text, step)) {
            step = step ? step : 1;
            memset(text, '?', step);
        }
        at += step;
    }
    memcpy(last_error, line, length);
    last_error[length] = 0;
    return status;
}

static vae_status no_memory(size_t size) {
    return fail(VAE_FAILED, "memory: expected %zu bytes more, got none; take fewer rows at a time", size);
}

static int multiply(size_t a, size_t b, size_t *product) {
    if (b && a > SIZE_MAX / b) return 0;
    *product = a * b;
    return 1;
}

static void *take(const vae_allocator *from, size_t size) {
    size = size ? size : 1;
    return from->allocate ? from->allocate(from->context, size) : malloc(size);
}

static void give(const vae_allocator *to, void *memory) {
    if (!memory) return;
    if (to->release)
        to->release(to->context, memory);
    else
        free(memory);
}

/* Memory that is released as a whole. */
typedef struct chunk {
    struct chunk *next;
} chunk;

typedef struct {
    const vae_allocator *from;
    chunk *chunks;
    unsigned char *unused;
    size_t left;
} arena;

#define CHUNK ((size_t)1 << 14)
#define ALIGNMENT ((size_t)16)

static void *arena_take(arena *memory, size_t size) {
    if (size > SIZE_MAX / 2) return NULL;
    size = (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (size > memory->left) {
        size_t whole = size > CHUNK ? size : CHUNK;
        chunk *added = take(memory->from, ALIGNMENT + whole);
        if (!added) return NULL;
        added->next = memory->chunks;
        memory->chunks = added;
        memory->unused = (unsigned char *)added + ALIGNMENT;
        memory->left = whole;
    }
    void *result = memory->unused;
    memory->unused += size;
    memory->left -= size;
    return result;
}

/* Zeros for `count` items; NULL where memory does not suffice. */
static void *arena_array(arena *memory, size_t count, size_t size) {
    size_t whole;
    void *array = multiply(count, size, &whole) ? arena_take(memory, whole) : NULL;
    if (array) memset(array, 0, whole);
    return array;
}

static void arena_release(arena *memory) {
    while (memory->chunks) {
        chunk *next = memory->chunks->next;
        give(memory->from, memory->chunks);
        memory->chunks = next;
    }
    memory->left = 0;
}

static char *arena_text(arena *memory, const char *text, size_t length) {
    char *copy = arena_take(memory, length + 1);
    if (!copy) return NULL;
    memcpy(copy, text, length);
    copy[length] = 0;
    return copy;
}

/* Two texts with something between; NULL where memory does not suffice. */
static char *arena_join(arena *memory, const char *a, const char *between, const char *b) {
    size_t size = strlen(a) + strlen(between) + strlen(b) + 1;
    char *text = arena_take(memory, size);
    if (text) snprintf(text, size, "%s%s%s", a, between, b);
    return text;
}

typedef struct {
    unsigned char *data;
    size_t size;
} bytes;

/* ---------------------------------------------------------------------------------------------------------- hashes */

static uint32_t rotated(uint32_t x, int by) { return (x >> by) | (x << (32 - by)); }

/* SHA-256, FIPS 180-4. */
static const uint32_t SHA_ROUNDS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static void sha256_block(uint32_t state[8], const unsigned char *block) {
    uint32_t w[64], h[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ (w[i - 15] >> 3);
        uint32_t b = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(h, state, sizeof h);
    for (int i = 0; i < 64; i++) {
        uint32_t e = rotated(h[4], 6) ^ rotated(h[4], 11) ^ rotated(h[4], 25);
        uint32_t a = rotated(h[0], 2) ^ rotated(h[0], 13) ^ rotated(h[0], 22);
        uint32_t t = h[7] + e + ((h[4] & h[5]) ^ (~h[4] & h[6])) + SHA_ROUNDS[i] + w[i];
        uint32_t u = a + ((h[0] & h[1]) ^ (h[0] & h[2]) ^ (h[1] & h[2]));
        memmove(h + 1, h, 7 * sizeof h[0]);
        h[4] += t;
        h[0] = t + u;
    }
    for (int i = 0; i < 8; i++) state[i] += h[i];
}

static void sha256(const unsigned char *data, size_t size, unsigned char digest[32]) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned char last[128] = {0};
    size_t whole = size / 64 * 64, rest = size - whole, padded = rest < 56 ? 64 : 128;
    for (size_t at = 0; at < whole; at += 64) sha256_block(state, data + at);
    if (rest) memcpy(last, data + whole, rest);
    last[rest] = 0x80;
    for (int i = 0; i < 8; i++) last[padded - 1 - i] = (unsigned char)((uint64_t)size << 3 >> (8 * i));
    for (size_t at = 0; at < padded; at += 64) sha256_block(state, last + at);
    for (int i = 0; i < 32; i++) digest[i] = (unsigned char)(state[i / 4] >> (24 - 8 * (i % 4)));
}

static void hexadecimal(const unsigned char digest[32], char text[65]) {
    for (int i = 0; i < 32; i++) snprintf(text + 2 * i, 3, "%02x", digest[i]);
}

/* The CRC-32 of .zip files. */
static uint32_t crc32_of(const unsigned char *data, size_t size) {
    uint32_t table[256], crc = 0xFFFFFFFF;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xEDB88320 : 0);
        table[i] = value;
    }
    for (size_t i = 0; i < size; i++) crc = table[(crc ^ data[i]) & 0xFF] ^ crc >> 8;
    return ~crc;
}

/* ----------------------------------------------------------------------------------------------------------- noise */

/* Q of docs/noise.md, section 3: 32768 numbers. */
static const int32_t QUANTILES[32768] = {
#include "vnoise1_table.h"
};

enum { PRIOR = 0, POSTERIOR = 1, CHOICE = 4 };
#define MAX_ELEMENTS ((uint64_t)1 << 34)

/* Blocks of four words are made many at a time, in loops that compilers turn into vector instructions. Where the system
 * can choose between two machine codes of a function when it is loaded, those of AVX2 are made too. */
enum { LANES = 64, VECTOR = 16 };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1 /* the choice would be made before the sanitizer has started */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(SANITIZED) && \
    (defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 9)
#define VECTORIZED __attribute__((target_clones("default", "avx2")))
#else
#define VECTORIZED
#endif

/* Philox4x32-10 of `lanes` counters, a multiple of VECTOR: each array has one of their four words. */
VECTORIZED static void philox(uint32_t *restrict a, uint32_t *restrict b, uint32_t *restrict c, uint32_t *restrict d,
                              size_t lanes, uint64_t seed) {
    for (size_t base = 0; base < lanes; base += VECTOR) {
        uint32_t k = (uint32_t)seed, l = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++) {
            for (size_t i = base; i < base + VECTOR; i++) {
                uint64_t p = (uint64_t)0xD2511F53 * a[i], q = (uint64_t)0xCD9E8D57 * c[i];
                uint32_t first = (uint32_t)(q >> 32) ^ b[i] ^ k, third = (uint32_t)(p >> 32) ^ d[i] ^ l;
                b[i] = (uint32_t)q;
                d[i] = (uint32_t)p;
                a[i] = first;
                c[i] = third;
            }
            k += 0x9E3779B9;
            l += 0xBB67AE85;
        }
    }
}

/* The normal number of a word, in units of 2^-21; without a branch. */
static inline int32_t fixed_of(uint32_t word) {
    uint32_t m = word & 0x7FFFFFFF;
    uint32_t level = (m < (1u << 25)) + (m < (1u << 19)) + (m < (1u << 13));
    uint32_t t = m << 6 * level, i = (t >> 18) + 8192 * level;
    /* The number after a level's last is the one of the same tail in the level before: 0 before level 0. */
    uint32_t next = i == 2 * 8192 - 1 ? 128 : i == 3 * 8192 - 1 ? 8192 + 128 : i + (level < 3);
    int32_t here = QUANTILES[i];
    int32_t y = here - (((here - QUANTILES[next]) * (int32_t)(t >> 3 & 0x7FFF)) >> 15);
    int32_t sign = -(int32_t)(word >> 31);
    return (y ^ sign) - sign;
}

/* The smallest tail distance whose normal number is at most the bound; 0 without one. */
static uint32_t nearest_tail(double truncation) {
    if (truncation <= 0) return 0;
    double bound = floor(truncation * 2097152.0);
    uint32_t low = 0, high = 0x7FFFFFFF;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (fixed_of(middle) <= bound)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Normal numbers of `lanes` words, a multiple of VECTOR. */
VECTORIZED static void to_normals(const uint32_t *restrict words, size_t lanes, uint32_t nearest,
                                  float *restrict out) {
    uint32_t moved[VECTOR];
    for (size_t base = 0; base < lanes; base += VECTOR) {
        const uint32_t *own = words + base;
        if (nearest) {
            for (size_t i = 0; i < VECTOR; i++) {
                uint64_t m = own[i] & 0x7FFFFFFF;
                moved[i] = (own[i] & 0x80000000) | (uint32_t)(nearest + (m * (0x80000000 - nearest) >> 31));
            }
            own = moved;
        }
        for (size_t i = 0; i < VECTOR; i++) out[base + i] = (float)fixed_of(own[i]) * (1.0f / 2097152.0f);
    }
}

/* Uniform numbers of `lanes` words, a multiple of VECTOR. */
static void to_uniforms(const uint32_t *restrict words, size_t lanes, float *restrict out) {
    for (size_t i = 0; i < lanes; i++) out[i] = (float)(words[i] >> 8) * (1.0f / 16777216.0f);
}

/* A place in a stream: the next block of four words of a sample. A sample has `blocks` of them. */
typedef struct {
    uint64_t seed, sample, block, blocks;
    uint32_t stream;
} generator;

/* What is made of words: as they are, or numbers of a distribution. */
typedef enum { WORDS, UNIFORMS, NORMALS } noise_kind;
typedef union {
    uint32_t words[4 * LANES];
    float numbers[4 * LANES];
} drawn;

/* Draw the next `count` blocks, at most LANES, in order: four words or numbers each. */
static void next_blocks(generator *g, size_t count, noise_kind kind, uint32_t nearest, drawn *out) {
    uint32_t words[4][LANES];
    float numbers[4][LANES];
    size_t lanes = (count + VECTOR - 1) / VECTOR * VECTOR;
    for (size_t i = 0; i < lanes; i++) {
        words[0][i] = (uint32_t)g->block;
        words[1][i] = g->stream;
        words[2][i] = (uint32_t)g->sample;
        words[3][i] = (uint32_t)(g->sample >> 32);
        if (i < count && ++g->block == g->blocks) g->block = 0, g->sample++;
    }
    philox(words[0], words[1], words[2], words[3], lanes, g->seed);
    if (kind == WORDS) {
        for (size_t i = 0; i < count; i++)
            for (size_t j = 0; j < 4; j++) out->words[4 * i + j] = words[j][i];
        return;
    }
    for (size_t j = 0; j < 4; j++)
        if (kind == NORMALS)
            to_normals(words[j], lanes, nearest, numbers[j]);
        else
            to_uniforms(words[j], lanes, numbers[j]);
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < 4; j++) out->numbers[4 * i + j] = numbers[j][i];
}

/* Fill `n` rows of `size` words or numbers, samples `start` and following; `out` takes four bytes for each. */
static void fill(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream, noise_kind kind, uint32_t nearest,
                 void *out) {
    generator g = {seed, start, 0, (size + 3) / 4, stream};
    unsigned char *to = out;
    drawn buffer;
    size_t column = 0; /* of the next number in its row */
    if (!size) return;
    for (uint64_t left = (uint64_t)n * g.blocks; left;) {
        size_t count = left < LANES ? (size_t)left : LANES;
        next_blocks(&g, count, kind, nearest, &buffer);
        left -= count;
        if (size % 4 == 0) {
            memcpy(to, &buffer, 16 * count);
            to += 16 * count;
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            size_t length = size - column < 4 ? size - column : 4;
            memcpy(to, buffer.words + 4 * i, 4 * length);
            to += 4 * length;
            column = column + length == size ? 0 : column + length;
        }
    }
}

static void draw_normal(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream, uint32_t nearest,
                        float temperature, float *out) {
    fill(seed, start, n, size, stream, NORMALS, nearest, out);
    if (temperature != 1)
        for (size_t i = 0; i < n * size; i++) out[i] *= temperature;
}

static vae_status check_noise(size_t n, size_t size, double truncation, const void *out) {
    size_t whole;
    uint64_t elements = size; /* of 64 bits, so that compilers for 32 bits find no comparison that is always false */
    if (elements > MAX_ELEMENTS)
        return fail(VAE_INPUT, "size: expected at most 2^34 numbers of a sample, got %zu; draw fewer", size);
    if (!multiply(n, size, &whole) || whole > SIZE_MAX / 4)
        return fail(VAE_INPUT, "n: expected fewer samples, got %zu; move start on", n);
    if (truncation != 0 && !(truncation >= 0.01 && truncation <= 1e6))
        return fail(VAE_INPUT, "truncation: expected a number from 0.01 to 1e6, or 0 for none, got %g; choose another",
                    truncation);
    if (whole && !out) return fail(VAE_INPUT, "out: expected room for %zu numbers, got NULL; give an array", whole);
    return VAE_OK;
}

vae_status vae_noise_words(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream, uint32_t *out) {
    vae_status status = check_noise(n, size, 0, out);
    if (!status) fill(seed, start, n, size, stream, WORDS, 0, out);
    return status;
}

vae_status vae_noise_uniform(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream, float *out) {
    vae_status status = check_noise(n, size, 0, out);
    if (!status) fill(seed, start, n, size, stream, UNIFORMS, 0, out);
    return status;
}

vae_status vae_noise_normal(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream, double truncation,
                            float *out) {
    vae_status status = check_noise(n, size, truncation, out);
    if (!status) fill(seed, start, n, size, stream, NORMALS, nearest_tail(truncation), out);
    return status;
}

/* Take numbers to 0 … 255, rounded half to even, and what is beyond to the nearest of these; tell whether all of them are
 * finite. Compared as integers, whose loops compilers turn into vector instructions: floats of 0 and above are in the order
 * of their bits. Adding 2^23 rounds a number to an integer, which is then in the lowest bits. */
VECTORIZED static int to_bytes(const float *restrict x, size_t n, float low, float scale, uint8_t *restrict out) {
    const int32_t most = 0x437F0000; /* 255 */
    uint32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        union {
            float number;
            int32_t bits;
        } given = {x[i]}, value;
        uint32_t size = (uint32_t)given.bits & 0x7FFFFFFF;
        largest = size > largest ? size : largest;
        value.number = (given.number - low) * scale;
        value.bits &= ~-(value.bits < 0);
        value.bits = value.bits < most ? value.bits : most;
        value.number += 8388608.0f;
        out[i] = (uint8_t)value.bits;
    }
    return largest < 0x7F800000;
}

vae_status vae_to_uint8(const float *x, size_t n, float low, float scale, uint8_t *out) {
    if (n && (!x || !out)) return fail(VAE_INPUT, "x and out: expected %zu numbers each, got NULL; give arrays", n);
    if (!to_bytes(x, n, low, scale, out))
        return fail(VAE_INPUT, "x: expected finite numbers, got NaN or infinity; look at the latents");
    return VAE_OK;
}

/* ------------------------------------------------------------------------------------------------------------ JSON */

typedef enum { NOTHING, FLAG, NUMBER, TEXT, LIST, OBJECT } node_kind;

/* A value of a JSON document, with its key where it is a member of an object. Texts end in a zero. */
typedef struct node {
    node_kind kind;
    const char *key, *text; /* `text` is empty where the value is no text */
    size_t key_length, length;
    double number; /* also of a flag: 0 or 1 */
    struct node *first, *next, *order;
    size_t count;
} node;

typedef struct {
    const unsigned char *text;
    size_t length, at;
    arena *memory;
    const char *place;
} parser;

#define MAX_DEPTH 64
#define MAX_DOCUMENT ((size_t)1 << 20)

static node *bad_json(parser *p, const char *expected) {
    fail(VAE_BUNDLE, "%s: expected JSON in UTF-8 with %s at byte %zu; copy the bundle again", p->place, expected,
         p->at);
    return NULL;
}

static void skip_spaces(parser *p) {
    while (p->at < p->length && memchr(" \t\n\r", p->text[p->at], 4)) p->at++;
}

static int next_is(parser *p, unsigned char c) { return p->at < p->length && p->text[p->at] == c; }

static int parse_hex4(parser *p, uint32_t *code) {
    *code = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        unsigned char c = p->at < p->length ? p->text[p->at] : 0;
        if (c >= '0' && c <= '9')
            *code = *code * 16 + (c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            *code = *code * 16 + ((c | 32) - 'a' + 10);
        else
            return 0;
    }
    return 1;
}

static size_t put_utf8(char *out, uint32_t code) {
    if (code < 0x80) return out[0] = (char)code, 1;
    if (code < 0x800) return out[0] = (char)(0xC0 | code >> 6), out[1] = (char)(0x80 | (code & 63)), 2;
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12), out[1] = (char)(0x80 | (code >> 6 & 63)),
        out[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18), out[1] = (char)(0x80 | (code >> 12 & 63));
    out[2] = (char)(0x80 | (code >> 6 & 63)), out[3] = (char)(0x80 | (code & 63));
    return 4;
}

/* An escape, from after its backslash. */
static int parse_escape(parser *p, uint32_t *code) {
    static const char NAMES[] = "\"\\/bfnrt", VALUES[] = "\"\\/\b\f\n\r\t";
    unsigned char c = p->at < p->length ? p->text[p->at++] : 0;
    const char *name = c ? memchr(NAMES, c, sizeof NAMES - 1) : NULL;
    if (name) return *code = (unsigned char)VALUES[name - NAMES], 1;
    if (c != 'u' || !parse_hex4(p, code)) return 0;
    if (*code >= 0xD800 && *code < 0xDC00) {
        uint32_t low;
        if (!next_is(p, '\\') || p->at + 1 >= p->length || p->text[p->at + 1] != 'u') return 0;
        p->at += 2;
        if (!parse_hex4(p, &low) || low < 0xDC00 || low > 0xDFFF) return 0;
        *code = 0x10000 + ((*code - 0xD800) << 10) + (low - 0xDC00);
    }
    /* A text of C ends in U+0000. */
    return *code && (*code < 0xD800 || *code > 0xDFFF);
}

/* A text, from its first quote on. */
static const char *parse_text(parser *p, size_t *length) {
    size_t end = ++p->at;
    while (end < p->length && p->text[end] != '"') end += p->text[end] == '\\' ? 2 : 1;
    if (end >= p->length) return bad_json(p, "a text that ends"), NULL;
    char *out = arena_take(p->memory, end - p->at + 1);
    if (!out) return no_memory(end - p->at), NULL;
    size_t size = 0;
    while (p->at < end) {
        size_t step = utf8_length(p->text + p->at, end - p->at);
        if (!step || p->text[p->at] < 0x20) return bad_json(p, "texts without control characters"), NULL;
        if (p->text[p->at] != '\\') {
            memcpy(out + size, p->text + p->at, step);
            size += step, p->at += step;
            continue;
        }
        uint32_t code;
        p->at++;
        if (!parse_escape(p, &code)) return bad_json(p, "known escapes"), NULL;
        size += put_utf8(out + size, code);
    }
    p->at = end + 1;
    out[size] = 0;
    *length = size;
    return out;
}

static size_t digits_at(parser *p) {
    size_t start = p->at;
    while (p->at < p->length && p->text[p->at] >= '0' && p->text[p->at] <= '9') p->at++;
    return p->at - start;
}

/* A number of JSON, by strtod with the decimal point that the locale of the process has. */
static int parse_number(parser *p, double *number) {
    size_t start = p->at, point = 0;
    p->at += next_is(p, '-') ? 1 : 0;
    size_t first = p->at, whole = digits_at(p);
    if (!whole || (whole > 1 && p->text[first] == '0')) return 0;
    if (next_is(p, '.')) {
        point = p->at++;
        if (!digits_at(p)) return 0;
    }
    if (next_is(p, 'e') || next_is(p, 'E')) {
        p->at++;
        p->at += next_is(p, '-') || next_is(p, '+') ? 1 : 0;
        if (!digits_at(p)) return 0;
    }
    char half[16], *copy;
    int separator = snprintf(half, sizeof half, "%.1f", 0.5) - 2;
    if (separator < 1 || !(copy = arena_take(p->memory, p->at - start + sizeof half))) return 0;
    size_t before = (point ? point : p->at) - start, after = point ? p->at - point - 1 : 0;
    memcpy(copy, p->text + start, before);
    memcpy(copy + before, half + 1, point ? (size_t)separator : 0);
    if (point) memcpy(copy + before + separator, p->text + point + 1, after);
    copy[before + (point ? (size_t)separator : 0) + after] = 0;
    *number = strtod(copy, NULL);
    return !isinf(*number);
}

static int compare_keys(const node *a, const node *b) {
    size_t shorter = a->key_length < b->key_length ? a->key_length : b->key_length;
    int order = memcmp(a->key, b->key, shorter);
    return order ? order : (a->key_length > b->key_length) - (a->key_length < b->key_length);
}

/* Sort `count` members by key, linked by `order`. */
static node *sorted_members(node *first, size_t count) {
    if (count < 2) {
        if (first) first->order = NULL;
        return first;
    }
    node *second = first, *head = NULL, **tail = &head;
    for (size_t i = 0; i < count / 2; i++) second = second->order;
    node *a = sorted_members(first, count / 2), *b = sorted_members(second, count - count / 2);
    while (a && b) {
        node **smaller = compare_keys(a, b) <= 0 ? &a : &b;
        *tail = *smaller;
        tail = &(*smaller)->order;
        *smaller = (*smaller)->order;
    }
    *tail = a ? a : b;
    return head;
}

static int has_repeated_key(node *object) {
    for (node *member = object->first; member; member = member->next) member->order = member->next;
    for (node *member = sorted_members(object->first, object->count); member && member->order; member = member->order)
        if (!compare_keys(member, member->order)) return 1;
    return 0;
}

static node *parse_value(parser *p, int depth);

/* The items of a list, or the members of an object, from after its bracket. */
static node *parse_items(parser *p, node *parent, int depth) {
    unsigned char close = parent->kind == LIST ? ']' : '}';
    node **tail = &parent->first;
    if (depth >= MAX_DEPTH) return bad_json(p, "at most 64 levels");
    skip_spaces(p);
    if (next_is(p, close)) return p->at++, parent;
    for (;;) {
        const char *key = NULL;
        size_t length = 0;
        skip_spaces(p);
        if (parent->kind == OBJECT) {
            if (!next_is(p, '"')) return bad_json(p, "a key");
            key = parse_text(p, &length);
            if (!key) return NULL;
            skip_spaces(p);
            if (!next_is(p, ':')) return bad_json(p, "a colon");
            p->at++;
        }
        node *item = parse_value(p, depth + 1);
        if (!item) return NULL;
        item->key = key, item->key_length = length;
        *tail = item;
        tail = &item->next;
        parent->count++;
        skip_spaces(p);
        if (next_is(p, close)) break;
        if (!next_is(p, ',')) return bad_json(p, "a comma or a bracket");
        p->at++;
    }
    p->at++;
    if (parent->kind == OBJECT && has_repeated_key(parent)) return bad_json(p, "each key once in an object that ends");
    return parent;
}

static node *parse_value(parser *p, int depth) {
    static const struct {
        const char *word;
        node_kind kind;
        double number;
    } WORDS[] = {{"null", NOTHING, 0}, {"true", FLAG, 1}, {"false", FLAG, 0}};
    node *value = arena_array(p->memory, 1, sizeof *value);
    if (!value) return no_memory(sizeof *value), NULL;
    value->text = "";
    skip_spaces(p);
    unsigned char c = p->at < p->length ? p->text[p->at] : 0;
    if (c == '{' || c == '[') {
        value->kind = c == '{' ? OBJECT : LIST;
        p->at++;
        return parse_items(p, value, depth);
    }
    if (c == '"') {
        value->kind = TEXT;
        value->text = parse_text(p, &value->length);
        return value->text ? value : NULL;
    }
    for (size_t i = 0; i < COUNT(WORDS); i++) {
        size_t length = strlen(WORDS[i].word);
        if (p->length - p->at >= length && !memcmp(p->text + p->at, WORDS[i].word, length)) {
            value->kind = WORDS[i].kind, value->number = WORDS[i].number;
            p->at += length;
            return value;
        }
    }
    value->kind = NUMBER;
    return parse_number(p, &value->number) ? value : bad_json(p, "a value");
}

static node *parse_json(arena *memory, const unsigned char *text, size_t length, const char *place) {
    parser p = {text, length, 0, memory, place};
    node *document = parse_value(&p, 0);
    skip_spaces(&p);
    return document && p.at < length ? bad_json(&p, "nothing more") : document;
}

static const node *member_of(const node *object, const char *key) {
    size_t length = strlen(key);
    if (object && object->kind == OBJECT)
        for (const node *each = object->first; each; each = each->next)
            if (each->key_length == length && !memcmp(each->key, key, length)) return each;
    return NULL;
}

/* The member at the end of a path of keys with dots between. */
static const node *member_at(const node *object, const char *path) {
    char key[64];
    while (object && *path) {
        size_t length = strcspn(path, ".");
        if (length >= sizeof key) return NULL;
        memcpy(key, path, length);
        key[length] = 0;
        object = member_of(object, key);
        path += length + (path[length] == '.');
    }
    return object;
}

static const char *text_of(const node *object, const char *key) {
    const node *member = member_of(object, key);
    return member && member->kind == TEXT ? member->text : NULL;
}

static int is_text(const node *value, const char *text) {
    return value && value->kind == TEXT && !strcmp(value->text, text);
}

/* ------------------------------------------------------------------------------------------- the manifest's schema */

/* How a value must look. `expected` describes it in errors. */
typedef enum {
    F_TEXT,
    F_CHOICE,
    F_NUMBER,
    F_INTEGER,
    F_FLAG,
    F_LIST,
    F_EITHER,
    F_MAP,
    F_RECORD,
    F_SCALAR,
    F_SPECIAL
} form;

typedef struct schema schema;
typedef struct checker checker;

typedef struct {
    const char *key;
    const schema *type;
    int required;
    const char *kinds;  /* only objects of these kinds have it: " normal codes "; NULL: all */
    const char *unless; /* not required, and must not be there, beside this field */
} member;

struct schema {
    form form;
    const char *expected;
    int (*matches)(const char *text, size_t length); /* F_TEXT; NULL matches all */
    const char *choices;                             /* F_CHOICE: " a b " */
    double min, max;                                 /* of a number, or of how many items; max 0: no limit */
    int flags;
    const schema *item;                                 /* of F_LIST, F_EITHER and F_MAP; NULL takes anything */
    const member *members;                              /* F_RECORD, until one without a key */
    vae_status (*check)(checker *c, const node *value); /* F_SPECIAL */
};

enum { ABOVE = 1, NOT_ZERO = 2, DISTINCT = 4, NULLABLE = 8, CLOSED = 16 };

struct checker {
    const char *file;
    char place[512];
    size_t length;
};

static int is_name_start(unsigned char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/* A name of a file: [A-Za-z0-9_-][A-Za-z0-9._-]* */
static int is_file_name(const char *text, size_t length) {
    if (!length || !is_name_start((unsigned char)text[0])) return 0;
    for (size_t i = 1; i < length; i++)
        if (!is_name_start((unsigned char)text[i]) && text[i] != '.') return 0;
    return 1;
}

static int is_path(const char *text, size_t length) {
    for (;;) {
        const char *slash = length ? memchr(text, '/', length) : NULL;
        size_t part = slash ? (size_t)(slash - text) : length;
        if (!is_file_name(text, part)) return 0;
        if (!slash) return 1;
        text += part + 1, length -= part + 1;
    }
}

static int is_variant_name(const char *text, size_t length) {
    return is_file_name(text, length) && !(length == 7 && !memcmp(text, "pytorch", 7));
}

static int is_tensor_name(const char *text, size_t length) {
    if (!length || text[0] == '-' || text[0] == '.' || (text[0] >= '0' && text[0] <= '9')) return 0;
    for (size_t i = 0; i < length; i++)
        if ((!is_name_start((unsigned char)text[i]) && text[i] != '.') || text[i] == '-') return 0;
    return 1;
}

static size_t count_digits(const char *text, size_t length) {
    size_t count = 0;
    while (count < length && text[count] >= '0' && text[count] <= '9') count++;
    return count;
}

/* An integer without leading zeros. */
static int is_integer(const char *text, size_t length) {
    return length && count_digits(text, length) == length && (length == 1 || text[0] != '0');
}

static int is_version_from(const char *text, size_t length, char major) {
    return length > 2 && text[0] == major && text[1] == '.' && is_integer(text + 2, length - 2);
}

static int is_schema_version(const char *text, size_t length) { return is_version_from(text, length, '1'); }

static int is_format_version(const char *text, size_t length) { return is_version_from(text, length, '2'); }

static int is_package_version(const char *text, size_t length) {
    for (int parts = 1; parts <= 8; parts++) {
        size_t digits = count_digits(text, length);
        if (digits > 9 || !is_integer(text, digits)) return 0;
        if (digits == length) return 1;
        if (text[digits] != '.') return 0;
        text += digits + 1, length -= digits + 1;
    }
    return 0;
}

static const char READER_NAME[] = "vae-runtime>=";

/* A requirement of this package: its name, and 1 to 8 integers. */
static int is_reader(const char *text, size_t length) {
    size_t name = sizeof READER_NAME - 1;
    if (length <= name || memcmp(text, READER_NAME, name)) return 0;
    text += name, length -= name;
    for (int parts = 1; parts <= 8; parts++) {
        size_t digits = count_digits(text, length);
        if (!digits || digits > 9) return 0;
        if (digits == length) return 1;
        if (text[digits] != '.') return 0;
        text += digits + 1, length -= digits + 1;
    }
    return 0;
}

/* Whether a requirement needs a later version than this one; a missing integer counts as 0. */
static int is_later(const char *reader) {
    const char *own = VAE_VERSION, *needed = reader + sizeof READER_NAME - 1;
    while (*own || *needed) {
        char *own_end, *needed_end;
        unsigned long a = strtoul(own, &own_end, 10), b = strtoul(needed, &needed_end, 10);
        if (a != b) return b > a;
        own = own_end + (*own_end == '.'), needed = needed_end + (*needed_end == '.');
    }
    return 0;
}

static int is_hash(const char *text, size_t length) {
    if (length != 64) return 0;
    for (size_t i = 0; i < 64; i++)
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f'))) return 0;
    return 1;
}

static int is_digest(const char *text, size_t length) {
    return length == 71 && !memcmp(text, "sha256:", 7) && is_hash(text + 7, length - 7);
}

/* One line without control characters. */
static int is_class(const char *text, size_t length) {
    for (size_t at = 0; at < length;) {
        const unsigned char *c = (const unsigned char *)text + at;
        size_t step = utf8_length(c, length - at);
        int is_separator = step == 3 && c[0] == 0xE2 && c[1] == 0x80 && (c[2] == 0xA8 || c[2] == 0xA9);
        if (!step || (step < 3 && is_control(c, step)) || is_separator) return 0;
        at += step;
    }
    return length > 0;
}

static const char *describe(const node *value, char *text, size_t size) {
    switch (value->kind) {
    case NOTHING: snprintf(text, size, "null"); break;
    case FLAG: snprintf(text, size, "%s", value->number != 0 ? "true" : "false"); break;
    case NUMBER: snprintf(text, size, "%.17g", value->number); break;
    case TEXT: snprintf(text, size, "\"%.80s\"", value->text); break;
    case LIST: snprintf(text, size, "a list of %zu", value->count); break;
    default: snprintf(text, size, "an object");
    }
    return text;
}

static vae_status bad_value(const checker *c, const char *expected, const node *value) {
    char got[128];
    return fail(VAE_BUNDLE, "%s: %s: expected %s, got %s; export the bundle again", c->file,
                c->length ? c->place : "the document", expected, value ? describe(value, got, sizeof got) : "nothing");
}

/* Lengthen the place of a value, and return its old length. */
LIKE_PRINTF(2, 3) static size_t enter(checker *c, const char *format, ...) {
    size_t before = c->length;
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(c->place + before, sizeof c->place - before, format, arguments);
    va_end(arguments);
    c->length = written < 0                                  ? before
                : before + (size_t)written < sizeof c->place ? before + (size_t)written
                                                             : sizeof c->place - 1;
    return before;
}

static void leave(checker *c, size_t before) {
    c->length = before;
    c->place[before] = 0;
}

static size_t enter_key(checker *c, const char *key) { return enter(c, c->length ? ".%.80s" : "%.80s", key); }

/* Whether a list of words, " a b ", has this one. */
static int has_word(const char *words, const char *word, size_t length) {
    for (const char *at = words; at && *at; at += strcspn(at, " ")) {
        at += strspn(at, " ");
        size_t size = strcspn(at, " ");
        if (size && size == length && !memcmp(at, word, size)) return 1;
    }
    return 0;
}

static vae_status check_value(checker *c, const node *value, const schema *type);

static int same_value(const node *a, const node *b) {
    return a->kind == b->kind && a->number == b->number && a->length == b->length &&
           !memcmp(a->text, b->text, a->length);
}

static vae_status check_list(checker *c, const node *list, const schema *type) {
    if (list->kind != LIST || (double)list->count < type->min || (type->max && (double)list->count > type->max))
        return bad_value(c, type->expected, list);
    size_t index = 0;
    for (const node *item = list->first; item; item = item->next, index++) {
        size_t before = enter(c, "[%zu]", index);
        vae_status status = check_value(c, item, type->item);
        if (status) return status;
        if (type->flags & DISTINCT)
            for (const node *other = list->first; other != item; other = other->next)
                if (same_value(item, other)) return bad_value(c, "a value that is not there yet", item);
        leave(c, before);
    }
    return VAE_OK;
}

static vae_status check_map(checker *c, const node *map, const schema *type) {
    if (map->kind != OBJECT || (double)map->count < type->min) return bad_value(c, type->expected, map);
    for (const node *item = map->first; item && type->item; item = item->next) {
        size_t before = enter_key(c, item->key);
        vae_status status = check_value(c, item, type->item);
        if (status) return status;
        leave(c, before);
    }
    return VAE_OK;
}

static vae_status check_closed(checker *c, const node *record, const schema *type) {
    for (const node *item = record->first; item; item = item->next) {
        int known = 0;
        for (const member *each = type->members; each->key; each++) known |= !strcmp(each->key, item->key);
        if (!known) return enter_key(c, item->key), bad_value(c, "no field of this name", item);
    }
    return VAE_OK;
}

static vae_status check_record(checker *c, const node *record, const schema *type) {
    if (record->kind != OBJECT) return bad_value(c, "an object", record);
    const node *kind = member_of(record, "kind");
    for (const member *each = type->members; each->key; each++) {
        if (each->kinds && !(kind && kind->kind == TEXT && has_word(each->kinds, kind->text, kind->length))) continue;
        const node *value = member_of(record, each->key);
        size_t before = enter_key(c, each->key);
        if (each->unless && member_of(record, each->unless)) {
            if (value) return bad_value(c, "no field of this name beside another", value);
        } else if (value) {
            vae_status status = check_value(c, value, each->type);
            if (status) return status;
        } else if (each->required) {
            return bad_value(c, "this field", NULL);
        }
        leave(c, before);
    }
    return type->flags & CLOSED ? check_closed(c, record, type) : VAE_OK;
}

static vae_status check_value(checker *c, const node *value, const schema *type) {
    int right = 0;
    if (value->kind == NOTHING && type->flags & NULLABLE) return VAE_OK;
    switch (type->form) {
    case F_TEXT: right = value->kind == TEXT && (!type->matches || type->matches(value->text, value->length)); break;
    case F_CHOICE: right = value->kind == TEXT && has_word(type->choices, value->text, value->length); break;
    case F_NUMBER:
        right = value->kind == NUMBER && fabs(value->number) <= 1e300 &&
                (type->flags & NOT_ZERO ? value->number != 0 : value->number >= type->min) &&
                !(type->flags & ABOVE && value->number <= type->min);
        break;
    case F_INTEGER:
        right = value->kind == NUMBER && floor(value->number) == value->number && value->number >= type->min &&
                value->number <= type->max;
        break;
    case F_FLAG: right = value->kind == FLAG; break;
    case F_SCALAR:
        right = value->kind == TEXT || value->kind == FLAG || value->kind == NOTHING ||
                (value->kind == NUMBER && fabs(value->number) <= 1e300);
        break;
    case F_LIST: return check_list(c, value, type);
    case F_EITHER: return value->kind == LIST ? check_list(c, value, type) : check_value(c, value, type->item);
    case F_MAP: return check_map(c, value, type);
    case F_RECORD: return check_record(c, value, type);
    case F_SPECIAL: return type->check(c, value);
    }
    return right ? VAE_OK : bad_value(c, type->expected, value);
}

#define ANY_NUMBER (-1e301)
static const schema STRING = {F_TEXT, .expected = "a string"};
static const schema FREE = {F_MAP, .expected = "an object"};
static const schema FILE_NAME = {F_TEXT, .expected = "a name of letters, digits, '.', '_' and '-'",
                                 .matches = is_file_name};
static const schema PATH_NAME = {F_TEXT, .expected = "a relative path inside the bundle, with '/' and without '..'",
                                 .matches = is_path};
static const schema TENSOR_NAME = {F_TEXT, .expected = "a tensor name of letters, digits, '_' and '.'",
                                   .matches = is_tensor_name};
static const schema VARIANT_NAME = {
    F_TEXT, .expected = "a variant named with letters, digits, '.', '_' and '-', and not 'pytorch'",
    .matches = is_variant_name};
static const schema SCHEMA_VERSION = {F_TEXT, .expected = "ONNX Runtime's package schema \"1.x\"",
                                      .matches = is_schema_version};
static const schema FORMAT_VERSION = {F_TEXT, .expected = "a version \"2.x\"", .matches = is_format_version};
static const schema PACKAGE_VERSION = {F_TEXT, .expected = "a version of 1 to 8 integers",
                                       .matches = is_package_version};
static const schema READER = {F_TEXT, .expected = "a requirement such as \"vae-runtime>=0.1\"", .matches = is_reader};
static const schema DIGEST = {F_TEXT, .expected = "a digest, \"sha256:\" and 64 hexadecimal digits",
                              .matches = is_digest};
static const schema CLASS = {F_TEXT, .expected = "one line of text", .matches = is_class};
static const schema PORTABLE = {F_CHOICE, .expected = "\"portable\"", .choices = " portable "};
static const schema DTYPE = {F_CHOICE, .expected = "\"float32\" or \"int64\"", .choices = " float32 int64 "};
static const schema COMPONENT_NAME = {F_CHOICE, .expected = "\"encoder\" or \"decoder\"",
                                      .choices = " encoder decoder "};
static const schema COMPONENT_NAMES = {F_LIST, .expected = "a list of components", .min = 1, .item = &COMPONENT_NAME,
                                       .flags = DISTINCT};
static const schema SIZE = {F_INTEGER, .expected = "an integer from 1 to 2147483647", .min = 1, .max = 2147483647};
static const schema REACH = {F_INTEGER, .expected = "an integer from 0 to 2147483647", .min = 0, .max = 2147483647};
static const schema ANY = {F_NUMBER, .expected = "a number", .min = ANY_NUMBER};
static const schema ANY_OR_NULL = {F_NUMBER, .expected = "a number or null", .min = ANY_NUMBER, .flags = NULLABLE};
static const schema POSITIVE = {F_NUMBER, .expected = "a positive number", .min = 0, .flags = ABOVE};
static const schema NOT_NEGATIVE = {F_NUMBER, .expected = "a number of at least 0", .min = 0};
static const schema FACTOR = {F_NUMBER, .expected = "a number other than 0", .flags = NOT_ZERO};
static const schema YES_OR_NO = {F_FLAG, .expected = "true or false"};
static const schema NUMBERS = {F_MAP, .expected = "an object", .item = &NOT_NEGATIVE};
static const schema SHAPE = {F_LIST, .expected = "a list of 1 to 8 sizes", .min = 1, .max = 8, .item = &SIZE};
static const schema ANY_SHAPE = {F_LIST, .expected = "a list of 0 to 8 sizes", .max = 8, .item = &SIZE};
static const schema AXES = {F_LIST, .expected = "a list of 1 to 8 axis names", .min = 1, .max = 8, .item = &STRING};
static const schema RANGE = {F_LIST,           .expected = "[min, max] or null", .min = 2, .max = 2, .item = &ANY,
                             .flags = NULLABLE};
static const schema CLASSES = {F_LIST, .expected = "a list of names of classes", .min = 1, .item = &CLASS};
static const schema SCALE = {F_EITHER, .expected = "a number, or a list of numbers", .min = 1, .item = &FACTOR};
static const schema SHIFT = {F_EITHER, .expected = "a number, or a list of numbers", .min = 1, .item = &ANY};
static const schema DIVISOR = {F_EITHER, .expected = "a positive number, or a list of such", .min = 1,
                               .item = &POSITIVE};

static const member SIZES_MEMBERS[] = {{"min", &SIZE, 1, 0, 0}, {"max", &SIZE, 1, 0, 0}, {"step", &SIZE, 0, 0, 0}, {0}};
static const schema SIZES = {F_RECORD, .members = SIZES_MEMBERS};
static const schema DYNAMIC = {F_MAP, .expected = "an object", .item = &SIZES};
static const member NORMALISATION_MEMBERS[] = {{"offset", &SHIFT, 1, 0, 0}, {"divisor", &DIVISOR, 1, 0, 0}, {0}};
static const schema NORMALISATION = {F_RECORD, .members = NORMALISATION_MEMBERS};
static const member OBSERVATION_MEMBERS[] = {
    {"name", &TENSOR_NAME, 1, 0, 0},
    {"shape", &SHAPE, 1, 0, 0},
    {"axes", &AXES, 1, 0, 0},
    {"range", &RANGE, 1, 0, 0},
    {"normalisation", &NORMALISATION, 0, 0, 0},
    {"dtype", &DTYPE, 1, 0, 0},
    {"dynamic", &DYNAMIC, 0, 0, 0},
    {0},
};
static const schema OBSERVATION = {F_RECORD, .members = OBSERVATION_MEMBERS};
static const member CONDITION_MEMBERS[] = {
    {"name", &TENSOR_NAME, 1, 0, 0},
    {"shape", &ANY_SHAPE, 1, 0, 0},
    {"dtype", &DTYPE, 1, 0, 0},
    {"classes", &CLASSES, 0, 0, 0},
    {"range", &RANGE, 0, 0, 0},
    {"components", &COMPONENT_NAMES, 1, 0, 0},
    {0},
};
static const schema CONDITION = {F_RECORD, .members = CONDITION_MEMBERS};
static const schema CONDITIONS = {F_LIST, .expected = "a list of at most 64 conditions", .max = 64, .item = &CONDITION};
static const schema PRIOR_KIND = {F_CHOICE, .expected = "\"normal\", \"mixture\", \"sphere\" or \"none\"",
                                  .choices = " normal mixture sphere none "};
static const schema COMPONENT_COUNT = {F_INTEGER, .expected = "an integer from 1 to 4096", .min = 1, .max = 4096};
static const schema COVARIANCE = {F_CHOICE, .expected = "\"diagonal\" or \"full\"", .choices = " diagonal full "};
static const member PRIOR_MEMBERS[] = {
    {"kind", &PRIOR_KIND, 1, 0, 0},
    {"file", &FILE_NAME, 1, " mixture ", 0},
    {"components", &COMPONENT_COUNT, 1, " mixture ", 0},
    {"covariance", &COVARIANCE, 1, " mixture ", 0},
    {"reason", &STRING, 0, " none ", 0},
    {"assumed", &YES_OR_NO, 0, " normal ", 0},
    {0},
};
static const schema PRIOR_OF_LATENT = {F_RECORD, .members = PRIOR_MEMBERS};
static const schema POSTERIOR_KIND = {F_CHOICE, .expected = "\"normal\", \"codes\" or \"none\"",
                                      .choices = " normal codes none "};
static const member POSTERIOR_MEMBERS[] = {
    {"kind", &POSTERIOR_KIND, 1, 0, 0},         {"mu", &TENSOR_NAME, 1, " normal ", 0},
    {"logvar", &TENSOR_NAME, 1, " normal ", 0}, {"std", &TENSOR_NAME, 1, " normal ", 0},
    {"value", &TENSOR_NAME, 1, " codes ", 0},   {"value", &TENSOR_NAME, 0, " none ", 0},
    {"codebook", &SIZE, 1, " codes ", 0},       {"noise", &TENSOR_NAME, 0, " normal ", 0},
    {"reason", &STRING, 0, " none ", 0},        {0},
};
static const schema POSTERIOR_OF_LATENT = {F_RECORD, .members = POSTERIOR_MEMBERS};
static const member LATENT_MEMBERS[] = {
    {"name", &TENSOR_NAME, 1, 0, 0},
    {"shape", &SHAPE, 1, 0, 0},
    {"posterior", &POSTERIOR_OF_LATENT, 1, 0, 0},
    {"prior", &PRIOR_OF_LATENT, 1, 0, 0},
    {"dtype", &DTYPE, 1, 0, 0},
    {"axes", &AXES, 0, 0, 0},
    {"dynamic", &DYNAMIC, 0, 0, 0},
    {"scale", &SCALE, 0, 0, 0},
    {"shift", &SHIFT, 0, 0, 0},
    {0},
};
static const schema LATENT = {F_RECORD, .members = LATENT_MEMBERS};
static const schema LATENTS = {F_LIST, .expected = "a list of 1 to 64 latents", .min = 1, .max = 64, .item = &LATENT};
static const member OUTPUT_MEMBERS[] = {
    {"name", &TENSOR_NAME, 1, 0, 0}, {"shape", &ANY_SHAPE, 1, 0, 0}, {"axes", &AXES, 0, 0, 0}, {0}};
static const schema OUTPUT = {F_RECORD, .members = OUTPUT_MEMBERS};
static const schema OUTPUTS = {F_LIST, .expected = "a list of at most 64 outputs", .max = 64, .item = &OUTPUT};
static const schema LIKELIHOOD_KIND = {F_CHOICE,
                                       .expected = "\"bernoulli\", \"gaussian\", \"laplace\", \"poisson\", "
                                                   "\"logistic\", \"categorical\" or \"none\"",
                                       .choices = " bernoulli gaussian laplace poisson logistic categorical none "};
static const member LIKELIHOOD_MEMBERS[] = {
    {"kind", &LIKELIHOOD_KIND, 1, 0, 0},
    {"mean", &TENSOR_NAME, 1, 0, 0},
    {"logits", &TENSOR_NAME, 0, " bernoulli categorical ", 0},
    {"scale", &POSITIVE, 1, " gaussian laplace logistic ", "scale_output"},
    {"scale_output", &TENSOR_NAME, 0, " gaussian laplace logistic ", 0},
    {"shape", &SHAPE, 0, 0, 0},
    {"axes", &AXES, 0, 0, 0},
    {"outputs", &OUTPUTS, 0, 0, 0},
    {"reason", &STRING, 0, " none ", 0},
    {0},
};
static const schema LIKELIHOOD = {F_RECORD, .members = LIKELIHOOD_MEMBERS};
static const schema SEED = {F_INTEGER, .expected = "an integer from 0 to 9007199254740991", .min = 0,
                            .max = 9007199254740991.0};
static const schema GOLDEN_ROWS = {F_INTEGER, .expected = "an integer from 1 to 1048576", .min = 1, .max = 1048576};
static const schema FILE_SIZE = {F_INTEGER, .expected = "an integer from 1 to 9007199254740991", .min = 1,
                                 .max = 9007199254740991.0};
static const member GOLDEN_MEMBERS[] = {
    {"file", &FILE_NAME, 1, 0, 0}, {"seed", &SEED, 1, 0, 0}, {"n", &GOLDEN_ROWS, 1, 0, 0}, {0}};
static const schema GOLDEN = {F_RECORD, .members = GOLDEN_MEMBERS};
static const schema SPEED = {F_MAP, .expected = "an object", .item = &POSITIVE};
static const member QUALITY_MEMBERS[] = {
    {"method", &STRING, 1, 0, 0},      {"size", &FILE_SIZE, 1, 0, 0},          {"psnr", &ANY_OR_NULL, 1, 0, 0},
    {"peak", &POSITIVE, 1, 0, 0},      {"elbo_change", &ANY_OR_NULL, 1, 0, 0}, {"measured", &STRING, 1, 0, 0},
    {"calibration", &STRING, 0, 0, 0}, {"reason", &STRING, 0, 0, 0},           {"speed", &SPEED, 0, 0, 0},
    {0},
};
static const schema QUALITY = {F_RECORD, .members = QUALITY_MEMBERS};
static const member REFUSAL_MEMBERS[] = {
    {"component", &COMPONENT_NAME, 1, 0, 0}, {"variant", &FILE_NAME, 1, 0, 0}, {"reason", &STRING, 1, 0, 0}, {0}};
static const schema REFUSAL = {F_RECORD, .members = REFUSAL_MEMBERS};
static const schema REFUSALS = {F_LIST, .expected = "a list", .item = &REFUSAL};
static const schema HALO = {F_MAP, .expected = "an object", .item = &REACH};
static const member TILES_MEMBERS[] = {
    {"component", &COMPONENT_NAME, 1, 0, 0}, {"halo", &HALO, 0, 0, 0}, {"reason", &STRING, 0, 0, 0}, {0}};
static const schema TILE = {F_RECORD, .members = TILES_MEMBERS};
static const schema TILES = {F_LIST, .expected = "a list of at most 2 objects", .max = 2, .item = &TILE};
static const schema COLUMN_KIND = {F_CHOICE, .expected = "\"modes\" or \"categories\"",
                                   .choices = " modes categories "};
static const schema MEANS = {F_LIST, .expected = "a list of numbers", .min = 1, .item = &ANY};
static const schema SCALES = {F_LIST, .expected = "a list of positive numbers", .min = 1, .item = &POSITIVE};
static const schema ROUNDING = {F_CHOICE, .expected = "\"nearest\" or \"zero\"", .choices = " nearest zero "};
static const schema SCALAR = {F_SCALAR, .expected = "a string, a number, true, false or null"};
static const schema CATEGORIES = {F_LIST, .expected = "a list of categories", .min = 1, .item = &SCALAR};
static const member COLUMN_MEMBERS[] = {
    {"name", &STRING, 1, 0, 0},
    {"kind", &COLUMN_KIND, 1, 0, 0},
    {"means", &MEANS, 1, " modes ", 0},
    {"scales", &SCALES, 1, " modes ", 0},
    {"rounding", &ROUNDING, 0, " modes ", 0},
    {"categories", &CATEGORIES, 1, " categories ", 0},
    {0},
};
static const schema COLUMN = {F_RECORD, .members = COLUMN_MEMBERS};
static const schema TABLE = {F_LIST, .expected = "a list of columns", .item = &COLUMN};
static const schema SCORE_KIND = {F_CHOICE, .expected = "\"elbo\" or \"log_likelihood\"",
                                  .choices = " elbo log_likelihood "};
static const schema SAMPLE_COUNT = {F_INTEGER, .expected = "an integer from 1 to 1000000", .min = 1, .max = 1000000};
static const schema SHARES = {F_LIST, .expected = "a list of 1 to 1024 shares", .min = 1, .max = 1024,
                              .item = &POSITIVE};
static const schema SCORE_VALUES = {F_LIST, .expected = "a list of 1 to 1024 scores", .min = 1, .max = 1024,
                                    .item = &ANY};
static const member SCORES_MEMBERS[] = {
    {"kind", &SCORE_KIND, 1, 0, 0},
    {"k", &SAMPLE_COUNT, 1, " log_likelihood ", 0},
    {"seed", &SEED, 1, 0, 0},
    {"n", &FILE_SIZE, 1, 0, 0},
    {"data", &STRING, 1, 0, 0},
    {"encoder", &STRING, 1, 0, 0},
    {"decoder", &STRING, 1, 0, 0},
    {"shares", &SHARES, 1, 0, 0},
    {"values", &SCORE_VALUES, 1, 0, 0},
    {0},
};
static const schema SCORES = {F_RECORD, .members = SCORES_MEMBERS};
static const schema NOISE = {F_CHOICE, .expected = "\"vnoise-1\"", .choices = " vnoise-1 "};
static const schema FIELD_NAMES = {F_LIST, .expected = "a list of field names", .item = &STRING};
static const member VAE_MEMBERS[] = {
    {"format_version", &FORMAT_VERSION, 1, 0, 0},
    {"must_understand", &FIELD_NAMES, 0, 0, 0},
    {"reader", &READER, 0, 0, 0},
    {"name", &STRING, 1, 0, 0},
    {"description", &STRING, 0, 0, 0},
    {"license", &STRING, 0, 0, 0},
    {"observation", &OBSERVATION, 1, 0, 0},
    {"conditions", &CONDITIONS, 0, 0, 0},
    {"latents", &LATENTS, 1, 0, 0},
    {"likelihood", &LIKELIHOOD, 1, 0, 0},
    {"tiles", &TILES, 0, 0, 0},
    {"table", &TABLE, 0, 0, 0},
    {"batch_of_one", &COMPONENT_NAMES, 0, 0, 0},
    {"noise", &NOISE, 1, 0, 0},
    {"golden", &GOLDEN, 1, 0, 0},
    {"scores", &SCORES, 0, 0, 0},
    {"refused", &REFUSALS, 0, 0, 0},
    {"training", &FREE, 0, 0, 0},
    {"metrics", &FREE, 0, 0, 0},
    {"producer", &FREE, 0, 0, 0},
    {"packed_from", &DIGEST, 0, 0, 0},
    {0},
};
static const schema VAE_RECORD = {F_RECORD, .members = VAE_MEMBERS};
static const member METADATA_MEMBERS[] = {{"vae", &VAE_RECORD, 1, 0, 0}, {0}};
static const schema METADATA = {F_RECORD, .members = METADATA_MEMBERS};

static const member GRAPH_FILE_MEMBERS[] = {{"model_file", &FILE_NAME, 1, 0, 0}, {0}};
static const schema GRAPH_FILE = {F_RECORD, .members = GRAPH_FILE_MEMBERS};
static const char *const EXECUTORS[] = {"ort", "torchscript", "torch_export"};

/* The payload of the executor that counts; NULL of another program's variant. */
static const node *payload_of(const node *variant, const char **executor) {
    const node *info = member_of(variant, "executor_info");
    for (size_t i = 0; i < COUNT(EXECUTORS); i++) {
        const node *payload = member_of(info, EXECUTORS[i]);
        if (payload) return *executor = EXECUTORS[i], payload;
    }
    return NULL;
}

static vae_status check_executors(checker *c, const node *value) {
    if (value->kind != OBJECT || !value->count) return bad_value(c, "an object with at least one member", value);
    for (const node *payload = value->first; payload; payload = payload->next)
        if (payload->kind != OBJECT) return enter_key(c, payload->key), bad_value(c, "an object", payload);
    for (size_t i = 0; i < COUNT(EXECUTORS); i++) {
        const node *payload = member_of(value, EXECUTORS[i]);
        if (payload) return enter_key(c, EXECUTORS[i]), check_value(c, payload, &GRAPH_FILE);
    }
    return VAE_OK;
}

static const schema EXECUTOR_INFO = {F_SPECIAL, .check = check_executors};
static const member STATE_MEMBERS[] = {{"name", &TENSOR_NAME, 1, 0, 0}, {"shape", &SHAPE, 1, 0, 0}, {0}};
static const schema STATE = {F_RECORD, .members = STATE_MEMBERS};
static const schema STATES = {F_LIST, .expected = "a list of at most 1024 states", .max = 1024, .item = &STATE};
static const member STREAM_MEMBERS[] = {
    {"file", &FILE_NAME, 0, 0, 0}, {"hop", &SIZE, 0, 0, 0},      {"error", &NOT_NEGATIVE, 0, 0, 0},
    {"states", &STATES, 0, 0, 0},  {"reason", &STRING, 0, 0, 0}, {0},
};
static const schema STREAM = {F_RECORD, .members = STREAM_MEMBERS};
static const member VARIANT_VAE_MEMBERS[] = {
    {"stream", &STREAM, 0, 0, 0},     {"precision", &STRING, 1, 0, 0},
    {"tolerance", &NUMBERS, 1, 0, 0}, {"error", &NUMBERS, 1, 0, 0},
    {"exporter", &STRING, 0, 0, 0},   {"data", &FILE_NAME, 0, 0, 0},
    {"quality", &QUALITY, 0, 0, 0},   {0},
};
static const schema VARIANT_VAE = {F_RECORD, .members = VARIANT_VAE_MEMBERS};
static const member VARIANT_METADATA_MEMBERS[] = {{"vae", &VARIANT_VAE, 1, 0, 0}, {0}};
static const schema VARIANT_METADATA = {F_RECORD, .members = VARIANT_METADATA_MEMBERS};
static const member VARIANT_MEMBERS[] = {
    {"variant_directory", &PATH_NAME, 1, 0, 0},
    {"ep", &STRING, 0, 0, 0},
    {"device", &STRING, 0, 0, 0},
    {"executor_info", &EXECUTOR_INFO, 1, 0, 0},
    {"additional_metadata", &VARIANT_METADATA, 1, 0, 0},
    {0},
};
static const schema VARIANT = {F_RECORD, .members = VARIANT_MEMBERS, .flags = CLOSED};

static vae_status check_variants(checker *c, const node *value) {
    if (value->kind != OBJECT || !value->count || value->count > 64)
        return bad_value(c, "an object with 1 to 64 variants", value);
    for (const node *variant = value->first; variant; variant = variant->next) {
        node name = {TEXT, NULL, variant->key, 0, variant->key_length, 0, NULL, NULL, NULL, 0};
        size_t before = enter_key(c, variant->key);
        vae_status status = check_value(c, &name, &VARIANT_NAME);
        if (!status) status = check_value(c, variant, &VARIANT);
        if (status) return status;
        leave(c, before);
    }
    return VAE_OK;
}

static const schema VARIANTS = {F_SPECIAL, .check = check_variants};
static const member COMPONENT_MEMBERS[] = {{"component_name", &STRING, 0, 0, 0},
                                           {"variants", &VARIANTS, 1, 0, 0},
                                           {"additional_metadata", &FREE, 0, 0, 0},
                                           {0}};
static const schema COMPONENT = {F_RECORD, .members = COMPONENT_MEMBERS, .flags = CLOSED};
static const member COMPONENTS_MEMBERS[] = {{"encoder", &COMPONENT, 0, 0, 0}, {"decoder", &COMPONENT, 0, 0, 0}, {0}};
static const schema COMPONENTS = {F_RECORD, .members = COMPONENTS_MEMBERS};
static const member DOCUMENT_MEMBERS[] = {
    {"schema_version", &SCHEMA_VERSION, 1, 0, 0},
    {"package_name", &FILE_NAME, 1, 0, 0},
    {"package_version", &PACKAGE_VERSION, 0, 0, 0},
    {"description", &STRING, 0, 0, 0},
    {"layout", &PORTABLE, 1, 0, 0},
    {"components", &COMPONENTS, 1, 0, 0},
    {"additional_metadata", &METADATA, 1, 0, 0},
    {0},
};
static const schema DOCUMENT = {F_RECORD, .members = DOCUMENT_MEMBERS, .flags = CLOSED};

/* Whether `must_understand` may name a field: those of `vae`, and after a dot those of its objects. */
static int is_known_field(const char *name) {
    for (const member *each = VAE_MEMBERS; each->key; each++) {
        size_t length = strlen(each->key);
        const schema *type = each->type->form == F_LIST ? each->type->item : each->type;
        if (strncmp(each->key, name, length)) continue;
        if (!name[length]) return 1;
        for (const member *below = type->form == F_RECORD ? type->members : NULL;
             name[length] == '.' && below && below->key; below++)
            if (!strcmp(below->key, name + length + 1)) return 1;
    }
    return 0;
}

/* A format that this version does not read, where the document plainly names one. */
static vae_status check_version(const char *file, const node *document) {
    const node *vae_node = member_at(document, "additional_metadata.vae");
    const node *version = member_of(vae_node, "format_version"), *needs = member_of(vae_node, "must_understand");
    if (!version || version->kind != TEXT) return VAE_OK;
    if (!is_format_version(version->text, version->length)) {
        const char *age = is_version_from(version->text, version->length, '1') ? "older" : "newer";
        return fail(VAE_BUNDLE,
                    "%s: additional_metadata.vae.format_version: expected a version \"2.x\", got \"%.80s\"; this "
                    "bundle is %s than this "
                    "vae-runtime: %s",
                    file, version->text, age, *age == 'o' ? "export it again" : "install a newer one");
    }
    for (const node *need = needs && needs->kind == LIST ? needs->first : NULL; need; need = need->next)
        if (need->kind == TEXT && !is_known_field(need->text))
            return fail(VAE_BUNDLE,
                        "%s: additional_metadata.vae.must_understand: expected fields of format 2.0, got \"%.80s\"; "
                        "this bundle is newer "
                        "than this vae-runtime: install a newer one",
                        file, need->text);
    return VAE_OK;
}

/* --------------------------------------------------------------------------------------------------- the manifest */

#define MAX_LATENTS 64
#define MAX_INPUTS 129  /* the observation, or 64 latents, 64 conditions and 64 noises */
#define MAX_DECODED 67  /* 3 of the likelihood, and 64 more */
#define MAX_OUTPUTS 192 /* 3 of each of 64 latents; or 3 of the likelihood, and 64 more */

enum { ENCODER = 0, DECODER = 1 };
static const char *const COMPONENT_OF[] = {"encoder", "decoder"};

/* A tensor without its batch axis. An axis with a `step` is dynamic. */
typedef struct {
    const char *name;
    int type;
    size_t rank;
    size_t sizes[VAE_AXES];
    const char *axes[VAE_AXES];
    struct {
        size_t min, max, step;
    } proven[VAE_AXES];
} tensor;

typedef struct {
    int given;
    float low, high;
    double min, max;
} range;

typedef struct {
    tensor tensor;
    const char *prior, *prior_file, *prior_reason, *posterior, *reason;
    const char *mean, *logvar, *std, *value, *noise;
    size_t components; /* of a mixture */
    int is_full;
    int64_t codebook;
} latent;

typedef struct {
    tensor tensor;
    range range;
    int taken[2]; /* by the encoder, by the decoder */
    const char **classes;
    size_t class_count;
} condition;

typedef struct {
    tensor *tensors;
    size_t count;
} signature;

typedef struct {
    int component;
    const char *name, *executor, *path, *data, *data_path; /* the last two are NULL where the graph holds its weights */
    const node *tolerance, *error;
    const node *stream;      /* NULL without one */
    const char *stream_path; /* of the graph that takes latents in chunks; NULL without one */
    size_t hop;
    signature stream_inputs, stream_outputs;
} variant;

typedef struct {
    const node *vae;
    const char *name, *description, *license, *likelihood, *golden_file, *packed_from;
    uint64_t golden_seed;
    size_t golden_rows;
    tensor observation;
    range observation_range;
    latent *latents;
    size_t latent_count;
    condition *conditions;
    size_t condition_count;
    variant *variants;
    size_t variant_count;
    int has[2], one_row[2], is_decoder_alone;
    signature inputs[2], outputs[2];
} manifest;

static size_t elements_of(const tensor *t) {
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++)
        if (!multiply(count, t->sizes[i], &count)) return SIZE_MAX;
    return count;
}

static size_t item_size(int type) { return type == ORT_INT64 ? 8 : 4; }

static void read_shape(const node *shape, tensor *t) {
    for (const node *size = shape ? shape->first : NULL; size; size = size->next)
        t->sizes[t->rank++] = (size_t)size->number;
}

static size_t integer_in(const node *object, const char *key, size_t otherwise) {
    const node *value = member_of(object, key);
    return value ? (size_t)value->number : otherwise;
}

static int same_text(const char *a, const char *b) { return a && b && !strcmp(a, b); }

/* Give an axis the sizes that it may have. */
static void make_dynamic(tensor *t, size_t axis, const node *sizes) {
    t->proven[axis].min = integer_in(sizes, "min", 1);
    t->proven[axis].max = integer_in(sizes, "max", 1);
    t->proven[axis].step = integer_in(sizes, "step", 1);
}

static int is_proven(const tensor *t, size_t axis, size_t size) {
    if (!t->proven[axis].step) return size == t->sizes[axis];
    return size >= t->proven[axis].min && size <= t->proven[axis].max &&
           (size - t->proven[axis].min) % t->proven[axis].step == 0;
}

static vae_status contradiction(const char *file, const char *place, const char *expected, const char *got) {
    return fail(VAE_BUNDLE, "%s: additional_metadata.vae.%s: expected %s, got %s; export the bundle again", file, place,
                expected, got);
}

/* A tensor's shape, its axes and the sizes that they may have: rules 1 and 8. */
static vae_status read_tensor(const char *file, const char *place, const node *object, tensor *t) {
    const node *axes = member_of(object, "axes"), *dynamic = member_of(object, "dynamic");
    t->name = text_of(object, "name");
    t->type = is_text(member_of(object, "dtype"), "int64") ? ORT_INT64 : ORT_FLOAT;
    read_shape(member_of(object, "shape"), t);
    if (axes && axes->count != t->rank)
        return contradiction(file, place, "one name of an axis for each size", "another number");
    size_t index = 0;
    for (const node *axis = axes ? axes->first : NULL; axis; axis = axis->next) t->axes[index++] = axis->text;
    for (const node *sizes = dynamic ? dynamic->first : NULL; sizes; sizes = sizes->next) {
        size_t found = 0, at = 0;
        for (size_t i = 0; i < t->rank; i++)
            if (same_text(t->axes[i], sizes->key)) found++, at = i;
        if (found != 1) return contradiction(file, place, "dynamic axes among its axes", sizes->key);
        make_dynamic(t, at, sizes);
        if (!is_proven(t, at, t->sizes[at]))
            return contradiction(file, place, "dynamic sizes that include the size in the shape", sizes->key);
    }
    if (elements_of(t) > SIZE_MAX / 64)
        return contradiction(file, place, "a shape that fits in memory", "a larger one");
    return VAE_OK;
}

/* Rule 2. The bounds as float32 are what arrays are compared with. */
static vae_status read_range(const char *file, const char *place, const node *object, range *r) {
    const node *bounds = member_of(object, "range");
    if (!bounds || bounds->kind != LIST) return VAE_OK;
    r->given = 1;
    r->min = bounds->first->number, r->max = bounds->first->next->number;
    r->low = (float)r->min, r->high = (float)r->max;
    return r->min < r->max ? VAE_OK : contradiction(file, place, "a range with min below max", "another");
}

/* Rule 13: as many numbers as the first size of a shape. */
static vae_status check_count(const char *file, const char *place, const node *numbers, const tensor *t) {
    return numbers && numbers->kind == LIST && numbers->count != t->sizes[0]
               ? contradiction(file, place, "one number, or one for each index of the first axis", "others")
               : VAE_OK;
}

/* Rules 10 to 13. */
static vae_status check_latent(const char *file, const char *place, const node *object, const latent *l) {
    int is_codes = same_text(l->posterior, "codes"), is_dynamic = 0;
    for (size_t i = 0; i < l->tensor.rank; i++) is_dynamic |= l->tensor.proven[i].step != 0;
    if ((l->tensor.type == ORT_INT64) != is_codes)
        return contradiction(file, place, "int64 for codes and float32 for all else", "another dtype");
    if (is_codes && !same_text(l->prior, "none"))
        return contradiction(file, place, "the prior \"none\" for codes", l->prior);
    if (same_text(l->posterior, "none") && !l->value && !same_text(l->prior, "normal"))
        return contradiction(file, place, "the prior \"normal\" for a latent that the encoder does not give", l->prior);
    if (same_text(l->prior, "mixture") && is_dynamic)
        return contradiction(file, place, "another prior for a latent with dynamic axes", l->prior);
    vae_status status = check_count(file, place, member_of(object, "scale"), &l->tensor);
    return status ? status : check_count(file, place, member_of(object, "shift"), &l->tensor);
}

static vae_status read_latents(const char *file, arena *memory, const node *list, manifest *m) {
    m->latents = arena_array(memory, list->count, sizeof *m->latents);
    if (!m->latents) return no_memory(list->count * sizeof *m->latents);
    for (const node *each = list->first; each; each = each->next) {
        latent *l = &m->latents[m->latent_count];
        char place[32];
        snprintf(place, sizeof place, "latents[%zu]", m->latent_count++);
        vae_status status = read_tensor(file, place, each, &l->tensor);
        if (status) return status;
        const node *prior = member_of(each, "prior"), *posterior = member_of(each, "posterior");
        l->prior = text_of(prior, "kind"), l->posterior = text_of(posterior, "kind");
        l->prior_reason = text_of(prior, "reason"), l->reason = text_of(posterior, "reason");
        if (same_text(l->prior, "mixture")) {
            l->prior_file = text_of(prior, "file");
            l->components = integer_in(prior, "components", 1);
            l->is_full = is_text(member_of(prior, "covariance"), "full");
        }
        if (same_text(l->posterior, "normal")) {
            l->mean = text_of(posterior, "mu"), l->logvar = text_of(posterior, "logvar"),
            l->std = text_of(posterior, "std");
            l->noise = text_of(posterior, "noise");
        } else {
            l->value = text_of(posterior, "value");
        }
        if (same_text(l->posterior, "codes")) l->codebook = (int64_t)member_of(posterior, "codebook")->number;
        status = check_latent(file, place, each, l);
        if (status) return status;
    }
    return VAE_OK;
}

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static vae_status read_classes(const char *file, const char *place, arena *memory, const node *list, condition *c) {
    if (!list) return VAE_OK;
    if (c->tensor.type != ORT_INT64 || c->tensor.rank)
        return contradiction(file, place, "no classes unless the condition is int64 []", "another");
    if (c->range.given) return contradiction(file, place, "no range beside classes", "one");
    const char **sorted = arena_array(memory, list->count, sizeof *sorted);
    c->classes = arena_array(memory, list->count, sizeof *c->classes);
    if (!c->classes || !sorted) return no_memory(list->count * sizeof *c->classes);
    for (const node *each = list->first; each; each = each->next) c->classes[c->class_count++] = each->text;
    memcpy(sorted, c->classes, c->class_count * sizeof *sorted);
    qsort(sorted, c->class_count, sizeof *sorted, compare_texts);
    for (size_t i = 1; i < c->class_count; i++)
        if (!strcmp(sorted[i - 1], sorted[i])) return contradiction(file, place, "each class once", sorted[i]);
    return VAE_OK;
}

static vae_status read_conditions(const char *file, arena *memory, const node *list, manifest *m) {
    if (!list) return VAE_OK;
    m->conditions = arena_array(memory, list->count, sizeof *m->conditions);
    if (!m->conditions) return no_memory(list->count * sizeof *m->conditions);
    for (const node *each = list->first; each; each = each->next) {
        condition *c = &m->conditions[m->condition_count];
        char place[32];
        snprintf(place, sizeof place, "conditions[%zu]", m->condition_count++);
        vae_status status = read_tensor(file, place, each, &c->tensor);
        if (!status) status = read_range(file, place, each, &c->range);
        if (!status) status = read_classes(file, place, memory, member_of(each, "classes"), c);
        if (status) return status;
        for (const node *name = member_of(each, "components")->first; name; name = name->next)
            c->taken[is_text(name, "decoder")] = 1;
    }
    return VAE_OK;
}

static vae_status read_variants(arena *memory, const node *document, manifest *m) {
    size_t count = 0;
    const node *lists[2];
    for (int i = 0; i < 2; i++) {
        lists[i] = member_of(member_of(member_of(document, "components"), COMPONENT_OF[i]), "variants");
        count += lists[i] ? lists[i]->count : 0;
    }
    m->variants = arena_array(memory, count, sizeof *m->variants);
    if (!m->variants) return no_memory(count * sizeof *m->variants);
    for (int i = 0; i < 2; i++)
        for (const node *each = lists[i] ? lists[i]->first : NULL; each; each = each->next) {
            variant *v = &m->variants[m->variant_count];
            const char *executor = NULL, *folder = text_of(each, "variant_directory");
            const node *payload = payload_of(each, &executor), *ours = member_at(each, "additional_metadata.vae");
            if (!payload) continue;
            v->component = i;
            v->name = each->key, v->executor = executor, v->data = text_of(ours, "data");
            v->path = arena_join(memory, folder, "/", text_of(payload, "model_file"));
            v->tolerance = member_of(ours, "tolerance"), v->error = member_of(ours, "error");
            v->stream = member_of(ours, "stream");
            const char *chunks = text_of(v->stream, "file");
            v->stream_path = chunks ? arena_join(memory, folder, "/", chunks) : NULL;
            v->data_path = v->data ? arena_join(memory, folder, "/", v->data) : NULL;
            if (!v->path || (v->data && !v->data_path) || (chunks && !v->stream_path)) return no_memory(1024);
            m->variant_count++;
            m->has[i] = 1;
        }
    return VAE_OK;
}

static void add_tensor(signature *s, const char *name, int type, const tensor *shape) {
    if (!name) return;
    tensor *t = &s->tensors[s->count++];
    *t = *shape;
    t->name = name, t->type = type;
}

/* The tensors of both graphs, but for the decoder's outputs. */
static vae_status read_signatures(arena *memory, manifest *m) {
    for (int component = 0; component < 2; component++) {
        m->inputs[component].tensors = arena_array(memory, 1 + m->latent_count + m->condition_count, sizeof(tensor));
        m->outputs[component].tensors =
            arena_array(memory, component == ENCODER ? 3 * m->latent_count : MAX_DECODED, sizeof(tensor));
        if (!m->inputs[component].tensors || !m->outputs[component].tensors)
            return no_memory(MAX_INPUTS * sizeof(tensor));
    }
    add_tensor(&m->inputs[ENCODER], m->observation.name, m->observation.type, &m->observation);
    for (size_t i = 0; i < m->latent_count; i++)
        add_tensor(&m->inputs[DECODER], m->latents[i].tensor.name, m->latents[i].tensor.type, &m->latents[i].tensor);
    for (size_t i = 0; i < m->condition_count; i++)
        for (int component = 0; component < 2; component++)
            if (m->conditions[i].taken[component])
                add_tensor(&m->inputs[component], m->conditions[i].tensor.name, m->conditions[i].tensor.type,
                           &m->conditions[i].tensor);
    for (size_t i = 0; i < m->latent_count; i++) {
        const latent *l = &m->latents[i];
        add_tensor(&m->inputs[ENCODER], l->noise, ORT_FLOAT, &l->tensor);
        add_tensor(&m->outputs[ENCODER], l->mean, l->tensor.type, &l->tensor);
        add_tensor(&m->outputs[ENCODER], l->logvar, l->tensor.type, &l->tensor);
        add_tensor(&m->outputs[ENCODER], l->std, l->tensor.type, &l->tensor);
        add_tensor(&m->outputs[ENCODER], l->value, l->tensor.type, &l->tensor);
    }
    return VAE_OK;
}

/* The axes of an output that are named like dynamic ones of the observation or a latent have their sizes. */
static void share_dynamic(const manifest *m, tensor *t) {
    for (size_t i = 0; i < t->rank; i++)
        for (size_t j = 0; j <= m->latent_count; j++) {
            const tensor *other = j ? &m->latents[j - 1].tensor : &m->observation;
            for (size_t k = 0; k < other->rank; k++)
                if (other->proven[k].step && same_text(other->axes[k], t->axes[i]))
                    memcpy(&t->proven[i], &other->proven[k], sizeof t->proven[i]);
        }
}

/* Rule 19: levels need a range; classes are a last axis of the answer, and count the values of the observation. */
static vae_status check_values(const char *file, const tensor *answer, const manifest *m) {
    const tensor *observation = &m->observation;
    const range *r = &m->observation_range;
    if (same_text(m->likelihood, "logistic") && !r->given)
        return contradiction(file, "observation.range", "the first and the last level", "null");
    if (!same_text(m->likelihood, "categorical")) return VAE_OK;
    int fits = answer->rank == observation->rank + 1 && answer->sizes[answer->rank - 1] > 1;
    for (size_t i = 0; fits && i < observation->rank; i++) fits = answer->sizes[i] == observation->sizes[i];
    if (!fits)
        return contradiction(file, "likelihood.shape", "the observation's and behind it 2 or more classes", "another");
    for (size_t i = 0; i < observation->rank; i++)
        if (!same_text(answer->axes[i], observation->axes[i]))
            return contradiction(file, "likelihood.axes", "the observation's and a name behind them", "others");
    if (!r->given || r->min != 0 || r->max != (double)(answer->sizes[answer->rank - 1] - 1))
        return contradiction(file, "observation.range", "the first and the last class", "another");
    return VAE_OK;
}

/* The decoder's outputs: rule 1 for the likelihood. */
static vae_status read_outputs(const char *file, const node *likelihood, manifest *m) {
    tensor shape = m->observation;
    m->likelihood = text_of(likelihood, "kind");
    if (member_of(likelihood, "shape")) {
        memset(&shape, 0, sizeof shape);
        vae_status status = read_tensor(file, "likelihood", likelihood, &shape);
        if (status) return status;
        share_dynamic(m, &shape);
    } else if (member_of(likelihood, "axes")) {
        return contradiction(file, "likelihood.axes", "no axes without a shape", "some");
    }
    vae_status known = check_values(file, &shape, m);
    if (known) return known;
    static const char *const NAMES[] = {"mean", "logits", "scale_output"};
    static const char *const KINDS[] = {NULL, " bernoulli categorical ", " gaussian laplace logistic "};
    for (size_t i = 0; i < COUNT(NAMES); i++)
        if (!KINDS[i] || has_word(KINDS[i], m->likelihood, strlen(m->likelihood)))
            add_tensor(&m->outputs[DECODER], text_of(likelihood, NAMES[i]), ORT_FLOAT, &shape);
    const node *outputs = member_of(likelihood, "outputs");
    for (const node *each = outputs ? outputs->first : NULL; each; each = each->next) {
        tensor further = {0};
        vae_status status = read_tensor(file, "likelihood.outputs", each, &further);
        if (status) return status;
        share_dynamic(m, &further);
        add_tensor(&m->outputs[DECODER], further.name, ORT_FLOAT, &further);
    }
    return VAE_OK;
}

/* Rules 3 and 4: names stand once. */
static vae_status check_names(const char *file, const manifest *m) {
    const char *inputs[1 + 3 * MAX_LATENTS];
    size_t count = 0;
    inputs[count++] = m->observation.name;
    for (size_t i = 0; i < m->condition_count; i++) inputs[count++] = m->conditions[i].tensor.name;
    for (size_t i = 0; i < m->latent_count; i++) {
        inputs[count++] = m->latents[i].tensor.name;
        if (m->latents[i].noise) inputs[count++] = m->latents[i].noise;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < i; j++)
            if (!strcmp(inputs[i], inputs[j]))
                return contradiction(file, "latents", "inputs of different names", inputs[i]);
    for (int component = 0; component < 2; component++)
        for (size_t i = 0; i < m->outputs[component].count; i++)
            for (size_t j = 0; j < i; j++)
                if (!strcmp(m->outputs[component].tensors[i].name, m->outputs[component].tensors[j].name))
                    return contradiction(file, COMPONENT_OF[component], "outputs of different names",
                                         m->outputs[component].tensors[i].name);
    return VAE_OK;
}

/* Rules 5, 6, 7 and 14, and the components that must be there. */
static vae_status check_variants_of(const char *file, const manifest *m) {
    const node *refused = member_of(m->vae, "refused");
    int needed[2] = {!m->packed_from && !m->is_decoder_alone, !m->packed_from};
    for (int i = 0; i < 2; i++) {
        int runs = 0;
        for (size_t j = 0; j < m->variant_count; j++)
            runs |= m->variants[j].component == i && same_text(m->variants[j].executor, "ort");
        if ((needed[i] || m->has[i] || !(m->has[0] || m->has[1])) && !runs)
            return contradiction(file, COMPONENT_OF[i], "a variant for ONNX Runtime", "none");
    }
    for (size_t i = 0; i < m->variant_count; i++) {
        const variant *v = &m->variants[i];
        const signature *outputs = &m->outputs[v->component];
        const node *numbers[] = {v->tolerance, v->error};
        for (size_t k = 0; k < 2; k++) {
            int right = numbers[k]->count == outputs->count;
            for (size_t j = 0; j < outputs->count; j++)
                right = right && member_of(numbers[k], outputs->tensors[j].name);
            if (!right)
                return contradiction(file, v->name, "a tolerance and an error for each output and no others", "others");
        }
        const char *own[] = {v->path, v->data_path, v->stream_path};
        for (size_t j = 0; j <= i; j++)
            for (size_t k = 0; k < 9; k++) {
                const variant *w = &m->variants[j];
                const char *other = k % 3 == 0 ? w->path : k % 3 == 1 ? w->data_path : w->stream_path;
                if ((j < i || k / 3 < k % 3) && same_text(own[k / 3], other))
                    return contradiction(file, v->name, "one use of each file", other);
            }
        for (const node *each = refused ? refused->first : NULL; each; each = each->next)
            if (is_text(member_of(each, "component"), COMPONENT_OF[v->component]) &&
                is_text(member_of(each, "variant"), v->name))
                return contradiction(file, "refused", "variants that the component does not have", v->name);
    }
    return VAE_OK;
}

/* The only dynamic axis of the only latent, along which a decoder can be causal; its rank where there is none. */
static size_t time_axis(const tensor *t) {
    size_t count = 0, axis = t->rank;
    for (size_t i = 0; i < t->rank; i++)
        if (t->proven[i].step) count++, axis = i;
    return count == 1 ? axis : t->rank;
}

/* The axis of the decoder's mean that has the name of time. */
static size_t answer_axis(const manifest *m) {
    const tensor *z = &m->latents[0].tensor, *mean = &m->outputs[DECODER].tensors[0];
    size_t axis = 0, time = time_axis(z);
    while (axis < mean->rank && !(time < z->rank && same_text(mean->axes[axis], z->axes[time]))) axis++;
    return axis;
}

/* Rule 17, and the tensors of a variant's graph for chunks. */
static vae_status read_stream(const char *file, arena *memory, const manifest *m, variant *v) {
    const node *states = member_of(v->stream, "states");
    size_t count = states ? states->count : 0;
    int members = !!v->stream_path + !!member_of(v->stream, "hop") + !!member_of(v->stream, "error");
    if (!v->stream || (!members && !count)) return VAE_OK;
    if (members != 3) return contradiction(file, v->name, "file, hop and error of a stream, or none of them", "some");
    if (v->component != DECODER || m->latent_count > 1 || time_axis(&m->latents[0].tensor) == m->latents[0].tensor.rank)
        return contradiction(file, v->name, "no stream but of a decoder of one latent with one dynamic axis", "one");
    if (answer_axis(m) == m->outputs[DECODER].tensors[0].rank)
        return contradiction(file, v->name, "a mean with the axis of a stream", "another");
    const signature *in = &m->inputs[DECODER];
    const tensor *mean = &m->outputs[DECODER].tensors[0];
    v->hop = integer_in(v->stream, "hop", 1);
    v->stream_inputs.tensors = arena_array(memory, in->count + count, sizeof(tensor));
    v->stream_outputs.tensors = arena_array(memory, 1 + count, sizeof(tensor));
    if (!v->stream_inputs.tensors || !v->stream_outputs.tensors) return no_memory((2 + count) * sizeof(tensor));
    for (size_t i = 0; i < in->count; i++)
        add_tensor(&v->stream_inputs, in->tensors[i].name, in->tensors[i].type, &in->tensors[i]);
    add_tensor(&v->stream_outputs, mean->name, ORT_FLOAT, mean);
    for (const node *each = states ? states->first : NULL; each; each = each->next) {
        tensor state = {0};
        const char *next = arena_join(memory, text_of(each, "name"), ".", "next");
        if (!next) return no_memory(256);
        read_shape(member_of(each, "shape"), &state);
        if (elements_of(&state) > SIZE_MAX / 64)
            return contradiction(file, v->name, "states that fit in memory", "others");
        for (size_t i = 0; i < v->stream_inputs.count; i++)
            if (same_text(v->stream_inputs.tensors[i].name, text_of(each, "name")))
                return contradiction(file, v->name, "inputs of a stream with different names", text_of(each, "name"));
        if (same_text(next, mean->name))
            return contradiction(file, v->name, "outputs of a stream with different names", next);
        add_tensor(&v->stream_inputs, text_of(each, "name"), ORT_FLOAT, &state);
        add_tensor(&v->stream_outputs, next, ORT_FLOAT, &state);
    }
    return VAE_OK;
}

/* Rule 15. */
static vae_status check_tiles(const char *file, const manifest *m) {
    const node *tiles = member_of(m->vae, "tiles");
    const tensor *x = &m->observation, *z = &m->latents[0].tensor;
    for (const node *each = tiles ? tiles->first : NULL; each; each = each->next) {
        const node *halo = member_of(each, "halo");
        if (each != tiles->first && same_value(member_of(each, "component"), member_of(tiles->first, "component")))
            return contradiction(file, "tiles", "each component once", "one twice");
        for (const node *reach = halo ? halo->first : NULL; reach; reach = reach->next) {
            size_t i = 0, j = 0;
            while (i < x->rank && !(x->proven[i].step && same_text(x->axes[i], reach->key))) i++;
            while (j < z->rank && !(z->proven[j].step && same_text(z->axes[j], reach->key))) j++;
            if (i == x->rank || j == z->rank)
                return contradiction(file, "tiles", "dynamic axes of the observation and of the first latent",
                                     reach->key);
            size_t ratio = x->sizes[i] / z->sizes[j];
            if (x->sizes[i] % z->sizes[j] || x->proven[i].min != z->proven[j].min * ratio ||
                x->proven[i].step != z->proven[j].step * ratio || z->proven[j].min % z->proven[j].step)
                return contradiction(file, "tiles", "axes whose sizes are multiples of the latent's", reach->key);
        }
        if (m->latent_count > 1 && halo && halo->count)
            return contradiction(file, "tiles", "no tiles where there are several latents", "some");
    }
    return VAE_OK;
}

/* Rule 16. */
static vae_status check_table(const char *file, arena *memory, const manifest *m) {
    const node *table = member_of(m->vae, "table");
    size_t width = 0, count = 0;
    if (!table || !table->count) return VAE_OK;
    const char **names = arena_array(memory, table->count, sizeof *names);
    if (!names) return no_memory(table->count * sizeof *names);
    for (const node *column = table->first; column; column = column->next) {
        const node *means = member_of(column, "means"), *scales = member_of(column, "scales"),
                   *categories = member_of(column, "categories");
        int is_modes = is_text(member_of(column, "kind"), "modes");
        names[count++] = text_of(column, "name");
        if (is_modes && means->count != scales->count)
            return contradiction(file, "table", "as many scales as means", text_of(column, "name"));
        width += is_modes ? 1 + means->count : categories->count;
    }
    qsort(names, count, sizeof *names, compare_texts);
    for (size_t i = 1; i < count; i++)
        if (!strcmp(names[i - 1], names[i]))
            return contradiction(file, "table", "columns of different names", names[i]);
    const tensor *mean = &m->outputs[DECODER].tensors[0];
    return mean->rank == 1 && mean->sizes[0] == width
               ? VAE_OK
               : contradiction(file, "table", "columns of as many values as the decoder's mean", "another number");
}

/* Rule 18. */
static vae_status check_scores(const char *file, const manifest *m) {
    const node *scores = member_of(m->vae, "scores");
    if (!scores) return VAE_OK;
    const node *shares = member_of(scores, "shares"), *values = member_of(scores, "values");
    if (shares->count != values->count)
        return contradiction(file, "scores.values", "one for each share", "another number");
    double last = 0;
    for (const node *each = shares->first; each; each = each->next) {
        if (each->number <= last) return contradiction(file, "scores.shares", "shares that rise up to 1", "others");
        last = each->number;
    }
    if (last != 1) return contradiction(file, "scores.shares", "shares that rise up to 1", "others");
    for (const node *each = values->first; each->next; each = each->next)
        if (each->next->number < each->number)
            return contradiction(file, "scores.values", "scores that do not fall", "others");
    return VAE_OK;
}

/* Read the manifest, and check what is in it against itself. */
static vae_status read_manifest(const char *file, arena *memory, bytes content, manifest *m) {
    if (content.size > MAX_DOCUMENT)
        return fail(VAE_BUNDLE, "%s: expected at most %zu bytes, got %zu; copy the bundle again", file, MAX_DOCUMENT,
                    content.size);
    const node *document = parse_json(memory, content.data, content.size, file);
    if (!document) return last_error[0] == 'm' && !strncmp(last_error, "memory:", 7) ? VAE_FAILED : VAE_BUNDLE;
    checker c = {file, "", 0};
    vae_status status = check_version(file, document);
    if (!status) status = check_value(&c, document, &DOCUMENT);
    if (status) return status;
    m->vae = member_at(document, "additional_metadata.vae");
    m->name = text_of(m->vae, "name"), m->description = text_of(m->vae, "description"),
    m->license = text_of(m->vae, "license");
    m->packed_from = text_of(m->vae, "packed_from");
    const node *golden = member_of(m->vae, "golden"), *one = member_of(m->vae, "batch_of_one"),
               *refused = member_of(m->vae, "refused");
    m->golden_file = text_of(golden, "file"), m->golden_seed = (uint64_t)member_of(golden, "seed")->number,
    m->golden_rows = integer_in(golden, "n", 1);
    for (const node *each = one ? one->first : NULL; each; each = each->next) m->one_row[is_text(each, "decoder")] = 1;
    for (const node *each = refused ? refused->first : NULL; each; each = each->next)
        m->is_decoder_alone |=
            is_text(member_of(each, "component"), "encoder") && is_text(member_of(each, "variant"), "fp32");
    const node *observation = member_of(m->vae, "observation");
    status = read_tensor(file, "observation", observation, &m->observation);
    if (!status) status = read_range(file, "observation", observation, &m->observation_range);
    if (!status)
        status = check_count(file, "observation.normalisation", member_at(observation, "normalisation.offset"),
                             &m->observation);
    if (!status)
        status = check_count(file, "observation.normalisation", member_at(observation, "normalisation.divisor"),
                             &m->observation);
    if (!status) status = read_conditions(file, memory, member_of(m->vae, "conditions"), m);
    if (!status) status = read_latents(file, memory, member_of(m->vae, "latents"), m);
    if (!status) status = read_signatures(memory, m);
    if (!status) status = read_outputs(file, member_of(m->vae, "likelihood"), m);
    if (!status) status = read_variants(memory, document, m);
    if (status) return status;
    m->is_decoder_alone &= !m->has[ENCODER];
    status = check_names(file, m);
    if (!status && text_of(m->vae, "reader") && is_later(text_of(m->vae, "reader")))
        return fail(VAE_BUNDLE,
                    "%s: additional_metadata.vae.reader: expected a requirement that vae-runtime " VAE_VERSION
                    " meets, got \"%s\"; install a newer one",
                    file, text_of(m->vae, "reader"));
    if (!status) status = check_variants_of(file, m);
    for (size_t i = 0; !status && i < m->variant_count; i++) status = read_stream(file, memory, m, &m->variants[i]);
    if (!status) status = check_tiles(file, m);
    if (!status) status = check_table(file, memory, m);
    return status ? status : check_scores(file, m);
}

/* ----------------------------------------------------------------------------------------------------------- files */

#ifdef _WIN32
#define open _open
#define read _read
#define close _close
#define fstat _fstat64
#define stat_of struct _stat64
#define seek _lseeki64
#define READ_FLAGS (_O_RDONLY | _O_BINARY)
#define IS_PLAIN(mode) (((mode)&_S_IFMT) == _S_IFREG)
#define IS_FOLDER(mode) (((mode)&_S_IFMT) == _S_IFDIR)
static int status_of(const char *path, stat_of *status) { return _stat64(path, status); }
#else
#define stat_of struct stat
#define seek lseek
/* Without waiting for what is no plain file. */
#define READ_FLAGS (O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
#define IS_PLAIN(mode) S_ISREG(mode)
#define IS_FOLDER(mode) S_ISDIR(mode)
static int status_of(const char *path, stat_of *status) { return stat(path, status); }
#endif

#define SUMS "SHA256SUMS"
#define MANIFEST "manifest.json"
#define MAX_DIRECTORY ((size_t)1 << 20)
#define MAX_GRAPH ((uint64_t)1 << 31)

/* A file in a .zip file. */
typedef struct {
    const char *name;
    uint64_t start;
    uint32_t size, crc;
} zip_member;

/* Where the files of a bundle are: in a folder, or in a .zip file. */
typedef struct {
    const char *root; /* as it was given, for errors */
    const char *location;
    int is_zip;
    zip_member *members; /* by name */
    size_t count;
} place;

typedef struct {
    const char *path, *hash; /* the hash in 64 digits, without a zero at its end */
} sum;

static vae_status not_read(const char *path) {
    return fail(VAE_BUNDLE, "%s: cannot be read: %s; copy the bundle again", path, strerror(errno));
}

/* Read `size` bytes from where a file is. */
static int read_all(int file, unsigned char *data, size_t size) {
    while (size) {
        unsigned part = size > 1 << 20 ? 1 << 20 : (unsigned)size;
        long long got = (long long)read(file, data, part);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        data += got, size -= (size_t)got;
    }
    return 1;
}

/* Whether an open file claims far more bytes than the disk has of it. */
static int is_sparse(int file, const stat_of *status) {
#if defined(SEEK_HOLE) && !defined(_WIN32)
    if ((uint64_t)status->st_size <= MAX_DIRECTORY ||
        (uint64_t)status->st_blocks * 512 * 64 >= (uint64_t)status->st_size)
        return 0;
    off_t hole = seek(file, 0, SEEK_HOLE);
    seek(file, 0, SEEK_SET);
    return hole >= 0 && hole < status->st_size;
#else
    (void)file, (void)status;
    return 0;
#endif
}

/* Open a plain file; -1 with an error. */
static int open_plain(const char *path, stat_of *status) {
    /* Opening a device may have effects, and opening a pipe may wait. What was opened is looked at once more. */
    if (status_of(path, status)) {
        if (errno == ENOENT || errno == ENOTDIR)
            fail(VAE_BUNDLE, "%s: missing; copy the bundle again", path);
        else
            not_read(path);
        return -1;
    }
    int file = IS_PLAIN(status->st_mode) ? open(path, READ_FLAGS) : -1;
    if (IS_PLAIN(status->st_mode) && file < 0) return not_read(path), -1;
    if (file < 0 || fstat(file, status) || !IS_PLAIN(status->st_mode)) {
        if (file >= 0) close(file);
        fail(VAE_BUNDLE, "%s: expected a plain file; copy the bundle again", path);
        return -1;
    }
    return file;
}

/* Read a part of a plain file, or all of it where `size` is UINT64_MAX. The caller gives the bytes back. */
static vae_status read_part(const vae_allocator *memory, const char *path, uint64_t start, uint64_t size,
                            uint64_t limit, bytes *content) {
    *content = (bytes){NULL, 0};
    stat_of status;
    int file = open_plain(path, &status);
    if (file < 0) return VAE_BUNDLE;
    vae_status result = VAE_OK;
    if (size == UINT64_MAX) size = (uint64_t)status.st_size;
    if (size > limit || size > SIZE_MAX / 2)
        result = fail(VAE_BUNDLE, "%s: expected at most %llu bytes, got %llu; copy the bundle again", path,
                      (unsigned long long)limit, (unsigned long long)size);
    else if (is_sparse(file, &status))
        result = fail(VAE_BUNDLE, "%s: expected %llu bytes, got a sparse file; copy the bundle again", path,
                      (unsigned long long)size);
    else if (!(content->data = take(memory, (size_t)size)))
        result = no_memory((size_t)size);
    else if (seek(file, (off_t)start, SEEK_SET) < 0 || !read_all(file, content->data, (size_t)size))
        result = fail(VAE_BUNDLE, "%s: cut short, or altered since it was opened; copy the bundle again", path);
    close(file);
    content->size = (size_t)size;
    if (result) {
        give(memory, content->data);
        *content = (bytes){NULL, 0};
    }
    return result;
}

static uint32_t u16(const unsigned char *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }

static uint32_t u32(const unsigned char *p) { return u16(p) | u16(p + 2) << 16; }

static int lower(int c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

/* Compare paths without the case of letters, a folder's before all that continues its name. */
static int compare_paths(const char *a, const char *b) {
    for (;; a++, b++) {
        int x = lower((unsigned char)*a), y = lower((unsigned char)*b);
        if (x != y) return (x == '/' ? 1 : x) - (y == '/' ? 1 : y);
        if (!x) return 0;
    }
}

static int compare_members(const void *a, const void *b) {
    const char *x = ((const zip_member *)a)->name, *y = ((const zip_member *)b)->name;
    int order = compare_paths(x, y);
    return order ? order : strcmp(x, y);
}

/* Whether two neighbors in the order of compare_paths clash: alike but for case, or one a folder of the other. */
static int is_clash(const char *a, const char *b) {
    size_t same = 0;
    while (a[same] && lower((unsigned char)a[same]) == lower((unsigned char)b[same])) same++;
    size_t end = same; /* of the folders and names that are alike */
    if (!(a[same] == 0 && (b[same] == 0 || b[same] == '/')))
        while (end && b[end - 1] != '/') end--;
    if (memcmp(a, b, end)) return 1;
    return a[same] == 0 && (b[same] == '/' || b[same] == 0);
}

static vae_status bad_zip(const place *p, const char *name, const char *expected) {
    return fail(VAE_BUNDLE, "%s: not a bundle's .zip file: %.200s%sexpected %s; pack or copy it again", p->root, name,
                *name ? ": " : "", expected);
}

/* Whether a path of a .zip file is one that a bundle may have. */
static int is_zip_path(const char *name, size_t length) {
    size_t folders = 0;
    for (size_t i = 0; i < length; i++) folders += name[i] == '/';
    return length <= 1024 && folders < 32 && is_path(name, length);
}

/* Hold one entry of the directory against the header before the file's bytes, and move on behind both. */
static vae_status read_entry(const vae_allocator *memory, const place *p, const unsigned char *entry, size_t length,
                             char *name, uint64_t *position, zip_member *m) {
    bytes header = {NULL, 0};
    uint32_t mode = u32(entry + 38) >> 16 & 0xF000;
    memcpy(name, entry + 46, length);
    name[length] = 0;
    if (!is_zip_path(name, length) || strlen(name) != length) return bad_zip(p, name, "paths of names of A-Za-z0-9._-");
    if (mode && mode != 0x8000) return bad_zip(p, name, "a plain file");
    if (u16(entry + 8) & ~0x800u || u16(entry + 10) || u32(entry + 20) != u32(entry + 24) || u16(entry + 6) > 20)
        return bad_zip(p, name, "a file that is neither compressed nor encrypted (zip -0)");
    if (u16(entry + 30) || u16(entry + 32) || u16(entry + 34))
        return bad_zip(p, name, "no extra fields and no comment (zip -X)");
    vae_status status = read_part(memory, p->location, *position, 30 + length, 30 + length, &header);
    if (status) return status;
    int right = u32(entry + 42) == *position && !memcmp(header.data, "PK\3\4", 4) &&
                !memcmp(header.data + 4, entry + 6, 24) && !u16(header.data + 28) &&
                !memcmp(header.data + 30, name, length);
    give(memory, header.data);
    if (!right) return bad_zip(p, name, "its header, as in the directory, right behind the file before");
    *m = (zip_member){name, *position + 30 + length, u32(entry + 24), u32(entry + 16)};
    *position += 30 + length + m->size;
    return VAE_OK;
}

static vae_status read_entries(arena *memory, place *p, const unsigned char *directory, size_t size, size_t count,
                               uint64_t start) {
    uint64_t position = 0;
    size_t at = 0;
    p->members = arena_array(memory, count, sizeof *p->members);
    if (!p->members) return no_memory(count * sizeof *p->members);
    for (; p->count < count; p->count++) {
        if (size - at < 46 || memcmp(directory + at, "PK\1\2", 4))
            return bad_zip(p, "", "as many files as its end says");
        size_t length = u16(directory + at + 28);
        if (size - at - 46 < length) return bad_zip(p, "", "a directory that ends within its bytes");
        char *name = arena_take(memory, length + 1);
        if (!name) return no_memory(length);
        vae_status status = read_entry(memory->from, p, directory + at, length, name, &position, &p->members[p->count]);
        if (status) return status;
        at += 46 + length;
    }
    if (at != size || position != start) return bad_zip(p, "", "files, directory and end without a gap");
    qsort(p->members, count, sizeof *p->members, compare_members);
    for (size_t i = 1; i < count; i++)
        if (is_clash(p->members[i - 1].name, p->members[i].name))
            return bad_zip(p, p->members[i].name, "paths that differ in more than case, and no file as a folder");
    return VAE_OK;
}

/* The files of a .zip file, which holds exactly what the format says and not a byte more. */
static vae_status open_zip(arena *memory, place *p, uint64_t whole) {
    bytes end = {NULL, 0}, directory = {NULL, 0};
    if (whole < 22) return bad_zip(p, "", "a folder, or a .zip file that ends without a comment");
    vae_status status = read_part(memory->from, p->location, whole - 22, 22, 22, &end);
    if (status) return status;
    size_t count = u16(end.data + 10), size = u32(end.data + 12);
    uint64_t start = u32(end.data + 16);
    int is_end = !memcmp(end.data, "PK\5\6", 4),
        is_plain = !u32(end.data + 4) && u16(end.data + 8) == count && !u16(end.data + 20);
    give(memory->from, end.data);
    if (!is_end) return bad_zip(p, "", "a folder, or a .zip file that ends without a comment");
    if (!is_plain || start + size + 22 != whole || size > MAX_DIRECTORY)
        return bad_zip(p, "", "a directory of at most 1 MiB right before its end");
    status = read_part(memory->from, p->location, start, size, size, &directory);
    if (!status) status = read_entries(memory, p, directory.data, size, count, start);
    give(memory->from, directory.data);
    return status;
}

/* A path that stays the same when the current folder changes. */
static char *absolute(arena *memory, const char *path) {
#ifdef _WIN32
    char *full = _fullpath(NULL, path, 0);
#else
    char *full = realpath(path, NULL);
#endif
    char *copy = full ? arena_text(memory, full, strlen(full)) : NULL;
    free(full);
    return copy;
}

static vae_status open_place(arena *memory, const char *path, place *p) {
    stat_of status;
    if (!path || !*path) return fail(VAE_INPUT, "path: expected a folder or a .zip file, got nothing; give a bundle");
    p->root = arena_text(memory, path, strlen(path));
    if (!p->root) return no_memory(strlen(path));
    if (status_of(path, &status))
        return fail(VAE_BUNDLE, "%s: does not exist; give the folder of a bundle, as `vae-export export` writes it",
                    path);
    p->is_zip = IS_PLAIN(status.st_mode);
    if (!p->is_zip && !IS_FOLDER(status.st_mode))
        return fail(VAE_BUNDLE, "%s: is neither a folder nor a .zip file; give the folder of a bundle", path);
    p->location = absolute(memory, path);
    if (!p->location) return not_read(path);
    return p->is_zip ? open_zip(memory, p, (uint64_t)status.st_size) : VAE_OK;
}

static const zip_member *find_member(const place *p, const char *name) {
    zip_member key = {name, 0, 0, 0};
    return p->count ? bsearch(&key, p->members, p->count, sizeof key, compare_members) : NULL;
}

/* Read a file of a bundle. The caller gives the bytes back. */
static vae_status read_file(const vae_allocator *memory, const place *p, const char *name, uint64_t limit,
                            bytes *content) {
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", p->is_zip ? p->root : p->location, name);
    if (length < 0 || (size_t)length >= sizeof path)
        return fail(VAE_BUNDLE, "%s: expected a path of at most 4095 bytes; move the bundle", p->root);
    if (!p->is_zip) return read_part(memory, path, 0, UINT64_MAX, limit, content);
    const zip_member *m = find_member(p, name);
    if (!m) return fail(VAE_BUNDLE, "%s: missing; copy the bundle again", path);
    vae_status status = read_part(memory, p->location, m->start, m->size, limit, content);
    if (status || crc32_of(content->data, content->size) == m->crc) return status;
    give(memory, content->data);
    *content = (bytes){NULL, 0};
    return fail(VAE_BUNDLE, "%s: damaged, or altered since it was opened; copy the bundle again", path);
}

/* The hashes of SHA256SUMS by path; `content` stays, with zeros behind its paths. */
static vae_status read_sums(arena *memory, const char *root, bytes content, sum **sums, size_t *count) {
    size_t lines = 0;
    for (size_t i = 0; i < content.size; i++) lines += content.data[i] == '\n';
    if (!lines || content.data[content.size - 1] != '\n')
        return fail(VAE_BUNDLE, "%s/" SUMS ": expected lines that each end in a newline; copy the bundle again", root);
    *sums = arena_array(memory, lines, sizeof **sums);
    if (!*sums) return no_memory(lines * sizeof **sums);
    char *line = (char *)content.data;
    for (*count = 0; *count < lines; (*count)++) {
        char *end = memchr(line, '\n', content.size - (size_t)(line - (char *)content.data));
        size_t length = (size_t)(end - line);
        if (length < 67 || !is_hash(line, 64) || line[64] != ' ' || line[65] != ' ' || !is_path(line + 66, length - 66))
            return fail(VAE_BUNDLE,
                        "%s/" SUMS ":%zu: expected '<64 hex digits>  <path>', got another line; copy the bundle again",
                        root, *count + 1);
        *end = 0;
        (*sums)[*count] = (sum){line + 66, line};
        if (*count && strcmp((*sums)[*count - 1].path, line + 66) >= 0)
            return fail(VAE_BUNDLE, "%s/" SUMS ": expected paths in order, each once; copy the bundle again", root);
        line = end + 1;
    }
    return VAE_OK;
}

static int compare_sums(const void *a, const void *b) { return strcmp(((const sum *)a)->path, ((const sum *)b)->path); }

static const sum *find_sum(const sum *sums, size_t count, const char *path) {
    sum key = {path, NULL};
    return count ? bsearch(&key, sums, count, sizeof key, compare_sums) : NULL;
}

/* ---------------------------------------------------------------------------------------------------------- graphs */

/* A graph is held against a strict frame before ONNX Runtime sees it: known fields with their wire types, operators
 * that give the same answer each time, tensors of numbers whose values fill their shape, and no other files. */

typedef struct {
    size_t start, end;
} span;

/* A name that the graph has defined so far. */
typedef struct {
    span name;
    int is_initializer; /* that no input repeats yet */
} definition;

typedef struct {
    const char *place;
    const unsigned char *data;
    size_t fields, nodes;
    const char *file; /* the name of the file of weights; NULL without one */
    size_t file_size;
    unsigned domains; /* that are declared: 1 ai.onnx, 2 com.microsoft */
    const vae_allocator *from;
    definition *defined; /* in the order of definition */
    uint32_t *slots;     /* 2 * room of them, by hash: the number of a definition, from 1; 0 is free */
    size_t count, room;
} graph_checker;

typedef struct {
    unsigned number, wire;
    uint64_t value; /* of a varint */
    span span;      /* of the other wire types */
} field;

/* The fields that a message may have: number << 4 | wire, and 8 where it may repeat. */
#define ONCE(number, wire) ((number) << 4 | (wire))
#define REPEATED(number, wire) ((number) << 4 | 8 | (wire))
static const unsigned char MODEL_FRAME[] = {ONCE(1, 0), ONCE(2, 2), ONCE(3, 2),     ONCE(4, 2),      ONCE(5, 0),
                                            ONCE(6, 2), ONCE(7, 2), REPEATED(8, 2), REPEATED(14, 2), 0};
static const unsigned char GRAPH_FRAME[] = {ONCE(2, 2),      ONCE(10, 2),     REPEATED(1, 2),
                                            REPEATED(5, 2),  REPEATED(11, 2), REPEATED(12, 2),
                                            REPEATED(13, 2), REPEATED(14, 2), 0};
static const unsigned char NODE_FRAME[] = {ONCE(3, 2),     ONCE(4, 2),     ONCE(6, 2),     ONCE(7, 2),     ONCE(8, 2),
                                           REPEATED(1, 2), REPEATED(2, 2), REPEATED(5, 2), REPEATED(9, 2), 0};
static const unsigned char ATTRIBUTE_FRAME[] = {
    ONCE(1, 2),     ONCE(2, 5),     ONCE(3, 0),     ONCE(4, 2),     ONCE(5, 2),     ONCE(6, 2), ONCE(13, 2),
    REPEATED(7, 5), REPEATED(7, 2), REPEATED(8, 0), REPEATED(8, 2), REPEATED(9, 2), 0};
static const unsigned char TENSOR_FRAME[] = {
    ONCE(2, 0),  ONCE(4, 2),  ONCE(5, 2),  ONCE(7, 2),     ONCE(8, 2),     ONCE(9, 2),      ONCE(10, 2),
    ONCE(11, 2), ONCE(12, 2), ONCE(14, 0), REPEATED(1, 0), REPEATED(1, 2), REPEATED(13, 2), 0};
static const unsigned char VALUE_FRAME[] = {ONCE(1, 2), ONCE(2, 2), ONCE(3, 2), REPEATED(4, 2), 0};
static const unsigned char TYPE_FRAME[] = {ONCE(1, 2), ONCE(6, 2), 0};
static const unsigned char TENSOR_TYPE_FRAME[] = {ONCE(1, 0), ONCE(2, 2), 0};
static const unsigned char SHAPE_FRAME[] = {REPEATED(1, 2), 0};
static const unsigned char DIMENSION_FRAME[] = {ONCE(1, 0), ONCE(2, 2), ONCE(3, 2), 0};
static const unsigned char ENTRY_FRAME[] = {ONCE(1, 2), ONCE(2, 2), 0};
static const unsigned char OPSET_FRAME[] = {ONCE(1, 2), ONCE(2, 0), 0};
static const unsigned char ANNOTATION_FRAME[] = {ONCE(1, 2), REPEATED(2, 2), 0};
/* Fields beyond 15, which the bytes above cannot hold: metadata, and the type of an attribute. */
enum { METADATA_FIELD = 16, ATTRIBUTE_TYPE = 20 };

static const char STANDARD_OPERATORS[] =
    " Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization "
    "BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip "
    "Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DFT "
    "DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand "
    "EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax "
    "Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log "
    "LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxUnpool Mean MeanVarianceNormalization Min "
    "Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization "
    "RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round STFT Scatter ScatterElements "
    "ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt "
    "Squeeze Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample "
    "Where Xor SimplifiedLayerNormalization ";
static const char MICROSOFT_OPERATORS[] =
    " Attention BiasAdd BiasGelu BiasSoftmax BiasSplitGelu ComplexMul ComplexMulConj DequantizeLinear "
    "DynamicQuantizeLSTM DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul FusedMatMulActivation "
    "GatherBlockQuantized Gelu GemmFastGelu GridSample GroupNorm Irfft MatMulBnb4 MatMulFpQ4 MatMulInteger16 "
    "MatMulIntegerToFloat MatMulNBits MulInteger MultiHeadAttention NhwcConv NhwcFusedConv NhwcMaxPool "
    "PackedMultiHeadAttention QAttention QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv "
    "QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax "
    "QLinearWhere QuantizeLinear QuickGelu ReduceSumInteger Rfft SimplifiedLayerNormalization "
    "SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization TransposeMatMul Trilu ";

static vae_status bad_graph(const graph_checker *g, const char *expected) {
    return fail(VAE_BUNDLE, "%s: expected an ONNX graph with %s; export the bundle again", g->place, expected);
}

/* An integer of 64 bits in its shortest form. */
static int read_varint(const graph_checker *g, size_t *at, size_t end, uint64_t *value) {
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
        if (*at >= end) return 0;
        unsigned char byte = g->data[(*at)++];
        if (shift == 63 && byte > 1) return 0;
        *value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return byte || !shift;
    }
    return 0;
}

/* Read the next field of a message, which `frame` must know. 1: there is one, 0: the message ends, -1: an error. */
static int next_field(graph_checker *g, span *message, const unsigned char *frame, unsigned extra, uint64_t *seen,
                      field *f) {
    uint64_t tag, length;
    memset(f, 0, sizeof *f);
    if (message->start == message->end) return 0;
    if (++g->fields > (size_t)1 << 19) return bad_graph(g, "at most 524288 fields"), -1;
    if (!read_varint(g, &message->start, message->end, &tag))
        return bad_graph(g, "fields that end within their bytes"), -1;
    f->number = tag >> 3 > 31 ? 31 : (unsigned)(tag >> 3), f->wire = (unsigned)tag & 7;
    int repeats = -1;
    for (; *frame && f->number < 16; frame++)
        if (*frame >> 4 == f->number && (*frame & 7u) == f->wire) repeats = *frame >> 3 & 1;
    if (extra && f->number == extra)
        repeats = extra == METADATA_FIELD ? (f->wire == 2 ? 1 : -1) : (f->wire == 0 ? 0 : -1);
    if (repeats < 0) return bad_graph(g, "known fields"), -1;
    if (!repeats && *seen >> f->number & 1) return bad_graph(g, "fields once that may not repeat"), -1;
    *seen |= (uint64_t)1 << f->number;
    if (f->wire == 0)
        return read_varint(g, &message->start, message->end, &f->value) ? 1 : (bad_graph(g, "integers of 64 bits"), -1);
    length = 4;
    if (f->wire == 2 && !read_varint(g, &message->start, message->end, &length))
        return bad_graph(g, "fields with a length"), -1;
    if (length > message->end - message->start) return bad_graph(g, "fields that end within their bytes"), -1;
    f->span = (span){message->start, message->start + (size_t)length};
    message->start += (size_t)length;
    return 1;
}

static int span_is(const graph_checker *g, span s, const char *text) {
    size_t length = strlen(text);
    return s.end - s.start == length && !memcmp(g->data + s.start, text, length);
}

/* Refuse a field that is a text of more than 64 KiB; `texts` has a bit for each field that is a text. */
static vae_status check_text(const graph_checker *g, const field *f, unsigned texts) {
    return texts >> f->number & 1 && f->span.end - f->span.start > 65536 ? bad_graph(g, "texts of at most 64 KiB")
                                                                          : VAE_OK;
}

/* An entry of metadata, none of which may be ONNX Runtime's own options. */
static vae_status check_entry(graph_checker *g, span entry) {
    field f;
    uint64_t seen = 0;
    int more;
    while ((more = next_field(g, &entry, ENTRY_FRAME, 0, &seen, &f)) > 0) {
        if (check_text(g, &f, 1 << 1 | 1 << 2)) return VAE_BUNDLE;
        if (f.number == 1 && f.span.end - f.span.start == 10) {
            int same = 1;
            for (size_t i = 0; i < 10; i++) same &= lower(g->data[f.span.start + i]) == "ort_config"[i];
            if (same) return bad_graph(g, "metadata without options of ONNX Runtime");
        }
    }
    return more ? VAE_BUNDLE : VAE_OK;
}

/* The bits of a type's values, and the field that may hold them beside raw_data (9); 0 of no type of numbers. */
static unsigned type_bits(uint64_t type, unsigned *typed) {
    static const unsigned char BITS[23] = {0,  32, 8, 8, 16, 16, 32, 64, 0, 8, 16, 64,
                                           32, 64, 0, 0, 16, 8,  8,  8,  8, 4, 4};
    if (type > 22 || !BITS[type]) return 0;
    *typed = type == 1 ? 4 : type == 7 ? 7 : type == 11 ? 10 : type == 12 || type == 13 ? 11 : 5;
    return BITS[type];
}

/* Multiply a tensor's count by sizes, one or a packed list. */
static int count_sizes(const graph_checker *g, const field *f, uint64_t *count, size_t *rank) {
    size_t at = f->span.start;
    uint64_t size = f->value;
    do {
        if (f->wire == 2 && at == f->span.end) return 1;
        if (f->wire == 2 && !read_varint(g, &at, f->span.end, &size)) return 0;
        if (++*rank > 16 || size >> 62 || (size && *count > ((uint64_t)1 << 62) / size)) return 0;
        *count *= size;
    } while (f->wire == 2);
    return 1;
}

static int read_decimal(const graph_checker *g, span s, uint64_t *value) {
    *value = 0;
    for (size_t i = s.start; i < s.end; i++) {
        if (g->data[i] < '0' || g->data[i] > '9' || i - s.start >= 18) return 0;
        *value = *value * 10 + (g->data[i] - '0');
    }
    return s.end > s.start;
}

/* Where a tensor's values are in the file of weights. */
typedef struct {
    span location, offset, length;
    unsigned entries;
} outside;

static vae_status read_outside(graph_checker *g, span entry, outside *o) {
    field f;
    uint64_t seen = 0;
    span key = {0, 0}, value = {0, 0};
    int more;
    while ((more = next_field(g, &entry, ENTRY_FRAME, 0, &seen, &f)) > 0) *(f.number == 1 ? &key : &value) = f.span;
    if (more) return VAE_BUNDLE;
    span *target = span_is(g, key, "location") ? &o->location
                   : span_is(g, key, "offset") ? &o->offset
                   : span_is(g, key, "length") ? &o->length
                                               : NULL;
    if (!target || target->end || value.start == value.end)
        return bad_graph(g, "a location, an offset and a length of values in another file, each once");
    *target = value;
    o->entries++;
    return VAE_OK;
}

static vae_status check_outside(const graph_checker *g, const outside *o, uint64_t size, int may_be_outside) {
    uint64_t offset = 0, length = 0;
    if (!g->file || !may_be_outside)
        return bad_graph(g, "values inside of it, or of initializers in the file that the manifest names");
    if (!span_is(g, o->location, g->file) || !read_decimal(g, o->length, &length) ||
        (o->offset.end && !read_decimal(g, o->offset, &offset)) || !length || length != size || offset > g->file_size ||
        length > g->file_size - offset)
        return bad_graph(g, "values within the file that the manifest names");
    return VAE_OK;
}

static vae_status check_tensor(graph_checker *g, span message, int may_be_outside) {
    field f;
    uint64_t seen = 0, type = 0, count = 1;
    size_t rank = 0;
    unsigned typed = 0, used = 0;
    span values = {0, 0};
    outside o = {{0, 0}, {0, 0}, {0, 0}, 0};
    int more, is_outside = 0;
    while ((more = next_field(g, &message, TENSOR_FRAME, METADATA_FIELD, &seen, &f)) > 0) {
        vae_status status = VAE_OK;
        switch (f.number) {
        case 1:
            status = count_sizes(g, &f, &count, &rank) ? VAE_OK : bad_graph(g, "at most 16 axes of possible sizes");
            break;
        case 2: type = f.value; break;
        case 4:
        case 5:
        case 7:
        case 9:
        case 10:
        case 11:
            if (used) return bad_graph(g, "a tensor's values in one field");
            used = f.number, values = f.span;
            break;
        case 13: status = read_outside(g, f.span, &o); break;
        case 14: is_outside = f.value != 0; break;
        case METADATA_FIELD: status = check_entry(g, f.span); break;
        default: break;
        }
        if (status) return status;
    }
    unsigned bits = type_bits(type, &typed);
    if (more) return VAE_BUNDLE;
    if (!bits) return bad_graph(g, "tensors of numbers");
    if (o.entries || is_outside)
        return used ? bad_graph(g, "a tensor's values in one place")
                    : check_outside(g, &o, count * bits / 8, may_be_outside);
    uint64_t size = values.end - values.start, expected = used == 9 ? (count * bits + 7) / 8 : count * bits / 8;
    if (used && used != 9 && used != typed) return bad_graph(g, "a tensor's values in the field of its type");
    if (used && used != 9 && used != 4 && used != 10) {
        expected = bits > 4 ? count : (count + 1) / 2;
        size = 0;
        for (size_t i = values.start; i < values.end; i++) size += g->data[i] < 0x80;
    }
    return used    ? (size == expected ? VAE_OK : bad_graph(g, "values that fill their tensor"))
           : count ? bad_graph(g, "tensors with values")
                   : VAE_OK;
}

/* An input, an output or the description of a tensor: of numbers, with at most 16 axes. */
static vae_status check_described(graph_checker *g, span message) {
    static const unsigned char *const FRAMES[] = {VALUE_FRAME, TYPE_FRAME, TENSOR_TYPE_FRAME, SHAPE_FRAME,
                                                  DIMENSION_FRAME};
    static const unsigned BELOW[] = {2, 1, 2, 1, 0}; /* the field that holds the next message */
    span open[5] = {message};
    uint64_t seen[5] = {0};
    size_t axes = 0;
    uint64_t count = 1;
    for (int level = 0; level >= 0;) {
        field f;
        int more = next_field(g, &open[level], FRAMES[level], 0, &seen[level], &f);
        unsigned typed;
        if (more < 0) return VAE_BUNDLE;
        if (!more) {
            level--;
            continue;
        }
        if (level == 0 && f.number == 4) {
            vae_status status = check_entry(g, f.span);
            if (status) return status;
        }
        if (level == 2 && f.number == 1 && !type_bits(f.value, &typed)) return bad_graph(g, "tensors of numbers");
        if (level == 3 && ++axes > 16) return bad_graph(g, "at most 16 axes");
        /* Sizes that are 0 or negative say nothing. */
        if (level == 4 && f.number == 1 && f.value && !(f.value >> 63)) {
            if (f.value > ((uint64_t)1 << 40) / count) return bad_graph(g, "tensors of at most 2^40 elements");
            count *= f.value;
        }
        if (level < 4 && f.number == BELOW[level]) {
            open[++level] = f.span;
            seen[level] = 0;
        }
    }
    return VAE_OK;
}

/* The slot of a name: its own, or a free one. The hash begins with an address, so that no file can choose collisions. */
static uint32_t *slot_of(const graph_checker *g, span name) {
    uint64_t hash = 0xCBF29CE484222325 ^ (uint64_t)(uintptr_t)g->slots;
    for (size_t i = name.start; i < name.end; i++) hash = (hash ^ g->data[i]) * 0x100000001B3;
    size_t length = name.end - name.start, mask = 2 * g->room - 1, at = (size_t)(hash ^ hash >> 32) & mask;
    for (; g->slots[at]; at = (at + 1) & mask) {
        span other = g->defined[g->slots[at] - 1].name;
        if (other.end - other.start == length && !memcmp(g->data + other.start, g->data + name.start, length)) break;
    }
    return &g->slots[at];
}

/* Make room for twice as many names. */
static vae_status widen(graph_checker *g) {
    size_t room = g->room ? 2 * g->room : 64;
    definition *defined = take(g->from, room * sizeof *defined);
    uint32_t *slots = take(g->from, 2 * room * sizeof *slots);
    if (!defined || !slots) {
        give(g->from, defined), give(g->from, slots);
        return no_memory(room * sizeof *defined);
    }
    if (g->count) memcpy(defined, g->defined, g->count * sizeof *defined);
    memset(slots, 0, 2 * room * sizeof *slots);
    give(g->from, g->defined), give(g->from, g->slots);
    g->defined = defined, g->slots = slots, g->room = room;
    for (size_t i = 0; i < g->count; i++) *slot_of(g, defined[i].name) = (uint32_t)(i + 1);
    return VAE_OK;
}

/* The fields of a graph whose names are its initializers, its inputs and its outputs. */
enum { GRAPH_INITIALIZERS = 5, GRAPH_INPUTS = 11, GRAPH_OUTPUTS = 12 };

/* Define a name. Before IR version 4, an initializer was also listed as an input. */
static vae_status define(graph_checker *g, span name, unsigned number) {
    if (name.start == name.end) return bad_graph(g, "a name for each tensor");
    vae_status status = g->count == g->room ? widen(g) : VAE_OK;
    if (status) return status;
    uint32_t *slot = slot_of(g, name);
    definition *known = *slot ? &g->defined[*slot - 1] : NULL;
    if (known && !(number == GRAPH_INPUTS && known->is_initializer)) return bad_graph(g, "each name defined once");
    if (known) {
        known->is_initializer = 0;
        return VAE_OK;
    }
    g->defined[g->count++] = (definition){name, number == GRAPH_INITIALIZERS};
    *slot = (uint32_t)g->count;
    return VAE_OK;
}

/* Remove all names but the first so many: the latest first, so that no other name needs their slots. */
static void forget(graph_checker *g, size_t first) {
    for (; g->count > first; g->count--) *slot_of(g, g->defined[g->count - 1].name) = 0;
}

/* Define the names of a graph's initializers or inputs, or require that those of its outputs are defined. */
static vae_status take_names(graph_checker *g, span message, unsigned number) {
    const unsigned char *frame = number == GRAPH_INITIALIZERS ? TENSOR_FRAME : VALUE_FRAME;
    unsigned extra = number == GRAPH_INITIALIZERS ? METADATA_FIELD : 0, place = number == GRAPH_INITIALIZERS ? 8 : 1;
    size_t fields = g->fields; /* each counts once */
    field f, inner;
    uint64_t seen = 0;
    int more;
    g->fields = 0;
    while ((more = next_field(g, &message, GRAPH_FRAME, METADATA_FIELD, &seen, &f)) > 0) {
        span name = {0, 0};
        uint64_t inner_seen = 0;
        if (f.number != number) continue;
        while ((more = next_field(g, &f.span, frame, extra, &inner_seen, &inner)) > 0)
            if (inner.number == place) name = inner.span;
        vae_status status = more                      ? VAE_BUNDLE
                            : number != GRAPH_OUTPUTS ? define(g, name, number)
                            : *slot_of(g, name)       ? VAE_OK
                                                      : bad_graph(g, "outputs that a node defines");
        if (status) return status;
    }
    g->fields = fields;
    return more ? VAE_BUNDLE : VAE_OK;
}

static vae_status check_graph(graph_checker *g, span message, int depth);

static int is_in(const graph_checker *g, span s, const char *words) {
    return has_word(words, (const char *)g->data + s.start, s.end - s.start);
}

/* The inputs and outputs of a node. */
typedef struct {
    span operator_name;
    size_t inputs, outputs;
    span third; /* input */
} node_ends;

/* Numbers by which ONNX Runtime divides, or which it takes as indices, without a look: the process would end. */
static vae_status check_numbers(graph_checker *g, const node_ends *node, span name, span message) {
    field f;
    uint64_t seen = 0, value;
    int is_divisor = is_in(g, name, "group num_groups num_heads q_num_heads kv_num_heads blocksize strides"),
        is_batch = span_is(g, name, "batch_dims"),
        is_parts = span_is(g, node->operator_name, "Split") && span_is(g, name, "num_outputs");
    if (!is_divisor && !is_batch && !is_parts) return VAE_OK;
    while (next_field(g, &message, ATTRIBUTE_FRAME, ATTRIBUTE_TYPE, &seen, &f) > 0) {
        if (f.number != 3 && f.number != 8) continue;
        size_t at = f.span.start;
        for (value = f.value; f.wire == 0 || at < f.span.end;) {
            if (f.wire == 2 && !read_varint(g, &at, f.span.end, &value)) return bad_graph(g, "integers of 64 bits");
            if (is_divisor && (!value || value >> 63)) return bad_graph(g, "numbers to divide by of at least 1");
            if (is_batch && value > 16) return bad_graph(g, "batch_dims from 0 to 16");
            if (is_parts && value != node->outputs) return bad_graph(g, "num_outputs of Split as many as its outputs");
            if (f.wire == 0) break;
        }
    }
    return VAE_OK;
}

/* Inputs that ONNX Runtime follows without asking whether they are there. */
static vae_status check_inputs(graph_checker *g, const node_ends *node) {
    if (node->inputs < 5 && is_in(g, node->operator_name, "QLinearLeakyRelu QLinearSigmoid"))
        return bad_graph(g, "all five inputs of QLinearLeakyRelu and QLinearSigmoid");
    if (node->inputs > 2 && node->third.start == node->third.end &&
        is_in(g, node->operator_name, "DFT LayerNormalization"))
        return bad_graph(g, "a third input of DFT and LayerNormalization with a name, or none");
    return VAE_OK;
}

/* An attribute of a node: one value of its type; a graph only of If. */
static vae_status check_attribute(graph_checker *g, const node_ends *node, span message, int is_if, int depth) {
    static const unsigned char FIELDS[] = {0, 2, 3, 4, 5, 6, 7, 8, 9};
    field f;
    uint64_t seen = 0, type = 0;
    span name = {0, 0}, value = {0, 0}, scan = message;
    int more;
    while ((more = next_field(g, &scan, ATTRIBUTE_FRAME, ATTRIBUTE_TYPE, &seen, &f)) > 0) {
        if (f.number == ATTRIBUTE_TYPE) type = f.value;
        if (f.number == 1) name = f.span;
        if (f.number > 1 && f.number < 13 && f.wire == 2) value = f.span;
    }
    if (more) return VAE_BUNDLE;
    if (type < 1 || type > 8 || (type == 5) != is_if) return bad_graph(g, "attributes of known types");
    uint64_t others =
        seen & ~((uint64_t)1 << 1 | (uint64_t)1 << 13 | (uint64_t)1 << ATTRIBUTE_TYPE | (uint64_t)1 << FIELDS[type]);
    if (!(seen >> 1 & 1) || others || ((type == 4 || type == 5) && !(seen >> FIELDS[type] & 1)))
        return bad_graph(g, "attributes with a name and one value of their type");
    if (type == 4) return check_tensor(g, value, 0);
    if (type == 2 || type == 7) return check_numbers(g, node, name, message);
    return type == 5 ? check_graph(g, value, depth + 1) : VAE_OK;
}

static vae_status check_node(graph_checker *g, span message, int depth) {
    field f;
    uint64_t seen = 0;
    span domain = {0, 0}, scan = message;
    node_ends node = {{0, 0}, 0, 0, {0, 0}};
    int more;
    if (++g->nodes > 16384) return bad_graph(g, "at most 16384 nodes");
    while ((more = next_field(g, &scan, NODE_FRAME, 0, &seen, &f)) > 0) {
        if (check_text(g, &f, 1 << 3 | 1 << 6)) return VAE_BUNDLE;
        if (f.number == 1 && ++node.inputs == 3) node.third = f.span;
        if (f.number == 1 && f.span.end > f.span.start && !*slot_of(g, f.span))
            return bad_graph(g, "nodes whose inputs are defined before");
        node.outputs += f.number == 2;
        if (f.number == 4) node.operator_name = f.span;
        if (f.number == 7) domain = f.span;
        if (f.number == 8 && f.span.end > f.span.start) return bad_graph(g, "operators without overloads");
    }
    if (more) return VAE_BUNDLE;
    int is_microsoft = span_is(g, domain, "com.microsoft"),
        is_standard = domain.start == domain.end || span_is(g, domain, "ai.onnx");
    const char *allowed = is_microsoft ? MICROSOFT_OPERATORS : is_standard ? STANDARD_OPERATORS : "";
    const char *name = (const char *)g->data + node.operator_name.start;
    size_t length = node.operator_name.end - node.operator_name.start;
    if (!has_word(allowed, name, length) || !(g->domains & (is_microsoft ? 2u : 1u)))
        return fail(VAE_BUNDLE,
                    "%s: expected operators that are allowed, of a declared set, got '%.*s'; export the bundle again",
                    g->place, (int)(length < 80 ? length : 80), name);
    if (check_inputs(g, &node)) return VAE_BUNDLE;
    int is_if = length == 2 && !memcmp(name, "If", 2);
    for (scan = message, seen = 0; next_field(g, &scan, NODE_FRAME, 0, &seen, &f) > 0;) {
        vae_status status = f.number == 5   ? check_attribute(g, &node, f.span, is_if, depth)
                            : f.number == 9 ? check_entry(g, f.span)
                                            : VAE_OK;
        if (status) return status;
    }
    size_t before = g->count;
    for (scan = message, seen = 0; next_field(g, &scan, NODE_FRAME, 0, &seen, &f) > 0;) {
        vae_status status = f.number == 2 && f.span.end > f.span.start ? define(g, f.span, 0) : VAE_OK;
        if (status) return status;
    }
    return g->count > before ? VAE_OK : bad_graph(g, "nodes with outputs");
}

static vae_status check_graph(graph_checker *g, span message, int depth) {
    field f;
    uint64_t seen = 0;
    int more, outputs = 0;
    size_t before = g->count;
    span scan = message;
    if (depth > 8) return bad_graph(g, "branches at most 8 deep");
    vae_status named = take_names(g, scan, GRAPH_INITIALIZERS);
    if (!named) named = take_names(g, scan, GRAPH_INPUTS);
    if (named) return named;
    while ((more = next_field(g, &message, GRAPH_FRAME, METADATA_FIELD, &seen, &f)) > 0) {
        vae_status status = VAE_OK;
        switch (f.number) {
        case 1: status = check_node(g, f.span, depth); break;
        case 5: status = check_tensor(g, f.span, depth == 0); break;
        case 11:
        case 12:
        case 13: status = check_described(g, f.span); break;
        case METADATA_FIELD: status = check_entry(g, f.span); break;
        case 14: {
            field entry;
            uint64_t inner = 0;
            while ((more = next_field(g, &f.span, ANNOTATION_FRAME, 0, &inner, &entry)) > 0)
                if (entry.number == 2 && check_entry(g, entry.span)) return VAE_BUNDLE;
            status = more ? VAE_BUNDLE : VAE_OK;
            break;
        }
        default: status = check_text(g, &f, 1 << 2 | 1 << 10);
        }
        outputs += f.number == 12;
        if (status) return status;
    }
    if (more) return VAE_BUNDLE;
    if (!outputs) return bad_graph(g, "outputs");
    named = take_names(g, scan, GRAPH_OUTPUTS);
    if (depth) forget(g, before);
    return named;
}

/* The declared sets of operators. */
static vae_status check_opset(graph_checker *g, span message) {
    field f;
    uint64_t seen = 0, version = 0;
    span domain = {0, 0};
    int more;
    while ((more = next_field(g, &message, OPSET_FRAME, 0, &seen, &f)) > 0) {
        if (f.number == 1) domain = f.span;
        if (f.number == 2) version = f.value;
    }
    if (more) return VAE_BUNDLE;
    unsigned bit = domain.start == domain.end || span_is(g, domain, "ai.onnx") ? 1
                   : span_is(g, domain, "com.microsoft")                       ? 2
                                                                               : 0;
    if (bit & g->domains) return bad_graph(g, "each operator set once");
    g->domains |= bit;
    return bit == 1 && (version < 9 || version > 28) ? bad_graph(g, "an operator set of ai.onnx from 9 to 28") : VAE_OK;
}

/* Refuse a graph that ONNX Runtime must not see. */
static vae_status check_model(const vae_allocator *from, const char *place, bytes content, const char *file,
                              size_t file_size) {
    graph_checker g = {place, content.data, 0, 0, file, file_size, 0, from, NULL, NULL, 0, 0};
    field f;
    uint64_t seen = 0, ir = 0;
    span scan = {0, content.size}, graph = {0, 0};
    int more;
    while ((more = next_field(&g, &scan, MODEL_FRAME, 0, &seen, &f)) > 0) {
        vae_status status = f.number == 8    ? check_opset(&g, f.span)
                            : f.number == 14 ? check_entry(&g, f.span)
                                             : check_text(&g, &f, 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6);
        if (status) return status;
        if (f.number == 1) ir = f.value;
        if (f.number == 7) graph = f.span;
    }
    if (more) return VAE_BUNDLE;
    if (graph.start == graph.end) return bad_graph(&g, "a graph in it");
    if (ir < 3 || ir > 14) return bad_graph(&g, "an IR version from 3 to 14");
    vae_status status = widen(&g);
    if (!status) status = check_graph(&g, graph, 0);
    give(from, g.defined), give(from, g.slots);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ .npz files */

/* Compressed data as RFC 1951 specifies it, into a buffer of the size that it must fill. */
typedef struct {
    const unsigned char *in;
    size_t in_size, at;
    uint32_t bits;
    int count, is_bad;
    unsigned char *out;
    size_t out_size, filled;
} inflater;

typedef struct {
    uint16_t counts[16], symbols[288];
} huffman;

static unsigned take_bits(inflater *s, int count) {
    while (s->count < count) {
        if (s->at >= s->in_size) return s->is_bad = 1, 0u;
        s->bits |= (uint32_t)s->in[s->at++] << s->count;
        s->count += 8;
    }
    unsigned value = s->bits & ((1u << count) - 1);
    s->bits >>= count;
    s->count -= count;
    return value;
}

/* Canonical codes from their lengths; fails where there are more codes than bits can tell apart. */
static int make_codes(huffman *h, const unsigned char *lengths, int count) {
    uint16_t offsets[16] = {0};
    int left = 1;
    memset(h, 0, sizeof *h);
    for (int i = 0; i < count; i++) h->counts[lengths[i]]++;
    h->counts[0] = 0;
    for (int length = 1; length < 16; length++) {
        left = left * 2 - h->counts[length];
        if (left < 0) return 0;
        if (length < 15) offsets[length + 1] = (uint16_t)(offsets[length] + h->counts[length]);
    }
    for (int i = 0; i < count; i++)
        if (lengths[i]) h->symbols[offsets[lengths[i]]++] = (uint16_t)i;
    return 1;
}

static unsigned decode_symbol(inflater *s, const huffman *h) {
    int code = 0, first = 0, index = 0;
    for (int length = 1; length < 16; length++) {
        code |= (int)take_bits(s, 1);
        if (s->is_bad) return 0;
        if (code - h->counts[length] < first) return h->symbols[index + code - first];
        index += h->counts[length];
        first = (first + h->counts[length]) << 1;
        code <<= 1;
    }
    return s->is_bad = 1, 0u;
}

static void inflate_codes(inflater *s, const huffman *literals, const huffman *distances) {
    static const uint16_t LENGTHS[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                         31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static const unsigned char LENGTH_BITS[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                  2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static const uint16_t DISTANCES[30] = {1,    2,    3,    4,    5,    7,    9,    13,    17,    25,
                                           33,   49,   65,   97,   129,  193,  257,  385,   513,   769,
                                           1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    while (!s->is_bad) {
        unsigned symbol = decode_symbol(s, literals);
        if (symbol == 256 || s->is_bad) return;
        if (symbol < 256) {
            if (s->filled >= s->out_size)
                s->is_bad = 1;
            else
                s->out[s->filled++] = (unsigned char)symbol;
            continue;
        }
        symbol -= 257;
        if (symbol >= 29) break;
        size_t length = LENGTHS[symbol] + take_bits(s, LENGTH_BITS[symbol]);
        unsigned code = decode_symbol(s, distances);
        if (code >= 30) break;
        size_t distance = DISTANCES[code] + take_bits(s, code < 2 ? 0 : (int)code / 2 - 1);
        if (s->is_bad || distance > s->filled || length > s->out_size - s->filled) break;
        for (; length; length--, s->filled++) s->out[s->filled] = s->out[s->filled - distance];
    }
    s->is_bad = 1;
}

static void inflate_stored(inflater *s) {
    s->bits = 0, s->count = 0;
    if (s->in_size - s->at < 4) {
        s->is_bad = 1;
        return;
    }
    size_t length = u16(s->in + s->at);
    int right = (u16(s->in + s->at + 2) ^ 0xFFFF) == length;
    s->at += 4;
    if (!right || length > s->in_size - s->at || length > s->out_size - s->filled) {
        s->is_bad = 1;
        return;
    }
    memcpy(s->out + s->filled, s->in + s->at, length);
    s->at += length, s->filled += length;
}

static void inflate_dynamic(inflater *s) {
    static const unsigned char ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    unsigned char lengths[320] = {0};
    huffman codes, distances;
    int literal_count = 257 + (int)take_bits(s, 5), distance_count = 1 + (int)take_bits(s, 5),
        code_count = 4 + (int)take_bits(s, 4), index = 0;
    for (int i = 0; i < code_count; i++) lengths[ORDER[i]] = (unsigned char)take_bits(s, 3);
    if (s->is_bad || literal_count > 286 || distance_count > 30 || !make_codes(&codes, lengths, 19)) {
        s->is_bad = 1;
        return;
    }
    while (index < literal_count + distance_count && !s->is_bad) {
        unsigned symbol = decode_symbol(s, &codes);
        if (symbol < 16) {
            lengths[index++] = (unsigned char)symbol;
            continue;
        }
        unsigned char value = symbol == 16 && index ? lengths[index - 1] : 0;
        int repeat = symbol == 16   ? 3 + (int)take_bits(s, 2)
                     : symbol == 17 ? 3 + (int)take_bits(s, 3)
                                    : 11 + (int)take_bits(s, 7);
        if ((symbol == 16 && !index) || index + repeat > literal_count + distance_count) s->is_bad = 1;
        for (; !s->is_bad && repeat; repeat--) lengths[index++] = value;
    }
    if (s->is_bad || !make_codes(&distances, lengths + literal_count, distance_count) ||
        !make_codes(&codes, lengths, literal_count))
        s->is_bad = 1;
    else
        inflate_codes(s, &codes, &distances);
}

static void inflate_fixed(inflater *s) {
    unsigned char lengths[288];
    huffman codes, distances;
    for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    make_codes(&codes, lengths, 288);
    memset(lengths, 5, 30);
    make_codes(&distances, lengths, 30);
    inflate_codes(s, &codes, &distances);
}

/* Whether the data fill the buffer exactly. */
static int inflate(const unsigned char *in, size_t in_size, unsigned char *out, size_t out_size) {
    inflater s = {in, in_size, 0, 0, 0, 0, out, out_size, 0};
    unsigned is_last = 0;
    while (!is_last && !s.is_bad) {
        is_last = take_bits(&s, 1);
        unsigned type = take_bits(&s, 2);
        if (s.is_bad || type == 3) return 0;
        if (type == 0)
            inflate_stored(&s);
        else if (type == 1)
            inflate_fixed(&s);
        else
            inflate_dynamic(&s);
    }
    return !s.is_bad && s.filled == out_size;
}

/* Unpack a member of an .npz file; the caller gives the bytes back. A name that is missing gives no bytes. */
static vae_status unpack(const vae_allocator *memory, const char *file, bytes z, const char *name, size_t limit,
                         bytes *content) {
    static const char DAMAGED[] = "%s: expected an .npz file as numpy writes it, got another; export the bundle again";
    if (z.size < 22 || memcmp(z.data + z.size - 22, "PK\5\6", 4)) return fail(VAE_BUNDLE, DAMAGED, file);
    const unsigned char *end = z.data + z.size - 22;
    size_t count = u16(end + 10), at = u32(end + 16), stop = z.size - 22;
    for (; count; count--) {
        if (at > stop || stop - at < 46 || memcmp(z.data + at, "PK\1\2", 4)) return fail(VAE_BUNDLE, DAMAGED, file);
        const unsigned char *entry = z.data + at;
        size_t length = u16(entry + 28), more = length + u16(entry + 30) + u16(entry + 32);
        if (stop - at - 46 < more) return fail(VAE_BUNDLE, DAMAGED, file);
        at += 46 + more;
        if (length != strlen(name) + 4 || memcmp(entry + 46, name, length - 4) ||
            memcmp(entry + 46 + length - 4, ".npy", 4))
            continue;
        size_t packed = u32(entry + 20), size = u32(entry + 24), local = u32(entry + 42);
        unsigned method = u16(entry + 10);
        if (u16(entry + 8) & 1 || (method != 0 && method != 8) || local > stop || stop - local < 30 ||
            memcmp(z.data + local, "PK\3\4", 4))
            return fail(VAE_BUNDLE, DAMAGED, file);
        size_t start = local + 30 + u16(z.data + local + 26) + u16(z.data + local + 28);
        if (start > stop || packed > stop - start || (method == 0 && packed != size) ||
            u16(z.data + local + 26) != length || memcmp(z.data + local + 30, entry + 46, length))
            return fail(VAE_BUNDLE, DAMAGED, file);
        /* No byte of compressed data gives more than 1032. */
        if (size > limit || size / 1032 > packed + 1)
            return fail(VAE_BUNDLE, "%s: %s: expected at most %zu bytes, got %zu; export the bundle again", file, name,
                        limit, size);
        content->data = take(memory, size);
        if (!content->data) return no_memory(size);
        content->size = size;
        int right = 1;
        if (method == 8)
            right = inflate(z.data + start, packed, content->data, size);
        else
            memcpy(content->data, z.data + start, size);
        if (right && crc32_of(content->data, size) == u32(entry + 16)) return VAE_OK;
        give(memory, content->data);
        *content = (bytes){NULL, 0};
        return fail(VAE_BUNDLE, "%s: %s: damaged; export the bundle again", file, name);
    }
    return VAE_OK;
}

/* The header that numpy writes for an array, without the spaces behind it. */
static size_t npy_header(char *text, size_t size, const char *dtype, int is_fortran, size_t rank, const size_t *sizes) {
    size_t length = (size_t)snprintf(text, size, "{'descr': '%s', 'fortran_order': %s, 'shape': (", dtype,
                                     is_fortran ? "True" : "False");
    for (size_t i = 0; i < rank; i++)
        length += (size_t)snprintf(text + length, size - length, i ? " %zu," : "%zu,", sizes[i]);
    if (rank > 1) length--;
    return length + (size_t)snprintf(text + length, size - length, "), }");
}

/* Where the values of an .npy file begin, if it holds an array of this dtype and shape; 0 if not. */
static size_t npy_values(bytes file, const char *dtype, size_t rank, const size_t *sizes, int *is_fortran) {
    char expected[512];
    if (file.size < 12 || memcmp(file.data, "\x93NUMPY", 6) || file.data[6] < 1 || file.data[6] > 3 || file.data[7])
        return 0;
    size_t start = file.data[6] == 1 ? 10 : 12, length = file.data[6] == 1 ? u16(file.data + 8) : u32(file.data + 8);
    if (length > file.size - start || !length) return 0;
    const char *header = (const char *)file.data + start;
    while (length && (header[length - 1] == ' ' || header[length - 1] == '\n')) length--;
    for (*is_fortran = 0; *is_fortran < 2; (*is_fortran)++) {
        size_t size = npy_header(expected, sizeof expected, dtype, *is_fortran, rank, sizes);
        if (size == length && !memcmp(header, expected, size))
            return start + (file.data[6] == 1 ? u16(file.data + 8) : u32(file.data + 8));
    }
    return 0;
}

/* Copy values that are stored with the first axis fastest into C order. */
static void from_fortran(const unsigned char *from, unsigned char *to, size_t rank, const size_t *sizes, size_t count,
                         size_t item) {
    size_t index[VAE_AXES + 2] = {0};
    for (size_t i = 0; i < count; i++) {
        size_t at = 0;
        for (size_t axis = rank; axis-- > 0;) at = at * sizes[axis] + index[axis];
        memcpy(to + i * item, from + at * item, item);
        for (size_t axis = rank; axis-- > 0;) {
            if (++index[axis] < sizes[axis]) break;
            index[axis] = 0;
        }
    }
}

/* An array of an .npz file in C order; the caller gives it back. `dtype` is numpy's: "<f4". */
static vae_status read_array(const vae_allocator *memory, const char *file, bytes z, const char *name,
                             const char *dtype, size_t rank, const size_t *sizes, void **array) {
    size_t item = (size_t)(dtype[2] - '0'), count = 1, size;
    bytes npy = {NULL, 0};
    int is_fortran = 0;
    for (size_t i = 0; i < rank; i++)
        if (!multiply(count, sizes[i], &count)) return no_memory(SIZE_MAX);
    if (!multiply(count, item, &size) || size > SIZE_MAX / 2) return no_memory(SIZE_MAX);
    vae_status status = unpack(memory, file, z, name, size + 4096, &npy);
    if (status) return status;
    size_t start = npy.data ? npy_values(npy, dtype, rank, sizes, &is_fortran) : 0;
    if (!start || npy.size - start < size) {
        const char *got = npy.data ? "another array" : "nothing";
        give(memory, npy.data);
        return fail(VAE_BUNDLE,
                    "%s: %s: expected %zu numbers of dtype %s in the shape that the manifest says, got %s; export the "
                    "bundle again",
                    file, name, count, dtype, got);
    }
    *array = take(memory, size);
    if (!*array)
        status = no_memory(size);
    else if (is_fortran)
        from_fortran(npy.data + start, *array, rank, sizes, count, item);
    else
        memcpy(*array, npy.data + start, size);
    give(memory, npy.data);
    return status;
}

/* ---------------------------------------------------------------------------------------------------- ONNX Runtime */

#ifdef _WIN32
typedef SRWLOCK mutex;
#define MUTEX_INIT(m) InitializeSRWLock(m)
#define MUTEX_LOCK(m) AcquireSRWLockExclusive(m)
#define MUTEX_UNLOCK(m) ReleaseSRWLockExclusive(m)
#define MUTEX_DESTROY(m) (void)(m)
#else
typedef pthread_mutex_t mutex;
#define MUTEX_INIT(m) pthread_mutex_init(m, NULL)
#define MUTEX_LOCK(m) pthread_mutex_lock(m)
#define MUTEX_UNLOCK(m) pthread_mutex_unlock(m)
#define MUTEX_DESTROY(m) pthread_mutex_destroy(m)
#endif

/* A call of a graph: arrays for its inputs and outputs, for one number of rows, one shape and some outputs. */
typedef struct call {
    struct call *next;
    arena memory; /* holds also this */
    size_t rows, wanted_count;
    size_t (*sizes)[VAE_AXES];
    unsigned char *wanted;
    ort_value **inputs, **outputs; /* an output is NULL where ONNX Runtime makes it, since its shape is open */
    void **input_data, **output_data;
    const char **input_names, **output_names;
} call;

/* A loaded graph, and the calls of it that no thread is using. */
typedef struct {
    int component;
    const variant *variant;
    const char *path, *data; /* of the graph: the variant's own, or the one for chunks */
    const signature *inputs, *outputs;
    ort_session *session;
    call *calls;
    size_t call_count;
} network;

#define MAX_CALLS 16

typedef struct {
    double *weights, *means, *factors; /* NULL until they are read */
} mixture;

/* Room for the noise of one latent. */
typedef struct scratch {
    struct scratch *next;
    float eps[1];
} scratch;

struct vae {
    vae_allocator allocator;
    arena memory;
    place place;
    sum *sums;
    size_t sum_count;
    bytes sums_content;
    char digest[72];
    manifest manifest;
    const char *device;
    int threads;
    ort_api api;
    ort_env *env;
    ort_memory *cpu;
    const char *version;
    network networks[2];
    network chunks; /* the decoder's graph for chunks */
    mixture *mixtures;
    scratch *scratches;
    size_t largest;      /* numbers of the largest latent */
    mutex lock, loading; /* the first for lists, held briefly; the second while files are read */
    vae_description description;
};

#ifdef _WIN32
static void *open_library(const char *path) { return (void *)LoadLibraryA(path); }
static void *symbol_of(void *library, const char *name) {
    FARPROC found = GetProcAddress((HMODULE)library, name);
    void *symbol;
    memcpy(&symbol, &found, sizeof symbol);
    return symbol;
}
static const char *library_error(void) { return "the system does not find it, or it is for another processor"; }
static const char *const LIBRARIES[] = {"onnxruntime.dll"};
#else
#ifdef RTLD_NODELETE
#define LIBRARY_FLAGS (RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)
#else
#define LIBRARY_FLAGS (RTLD_NOW | RTLD_LOCAL)
#endif
static void *open_library(const char *path) { return dlopen(path, LIBRARY_FLAGS); }
static void *symbol_of(void *library, const char *name) { return dlsym(library, name); }
static const char *library_error(void) {
    const char *error = dlerror();
    return error ? error : "unknown";
}
#ifdef __APPLE__
static const char *const LIBRARIES[] = {"libonnxruntime.dylib", "libonnxruntime.1.dylib"};
#else
static const char *const LIBRARIES[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif
#endif

/* Open ONNX Runtime. It stays loaded: its threads and thread-local data outlive any of its objects. */
static vae_status open_runtime(vae *v, const char *path) {
    void *library = NULL;
    if (path)
        library = open_library(path);
    else
        for (size_t i = 0; !library && i < COUNT(LIBRARIES); i++) library = open_library(LIBRARIES[i]);
    if (!library)
        return fail(VAE_DEVICE,
                    "ONNX Runtime: expected its shared library, got none: %.300s; give its path in options.onnxruntime",
                    library_error());
    void *symbol = symbol_of(library, "OrtGetApiBase");
    const ort_base *(ORT_CALLED * get_base)(void);
    if (!symbol)
        return fail(VAE_DEVICE, "%s: expected ONNX Runtime, got another library; give its path in options.onnxruntime",
                    path ? path : LIBRARIES[0]);
    memcpy(&get_base, &symbol, sizeof get_base);
    const ort_base *base = get_base();
    v->version = base->get_version();
    long minor = strncmp(v->version, "1.", 2) ? 0 : strtol(v->version + 2, NULL, 10);
    const ort_function *table = minor >= ORT_VERSION_OF_TABLE ? base->get_api(ORT_VERSION_OF_TABLE) : NULL;
    if (!table)
        return fail(VAE_DEVICE, "ONNX Runtime: expected version 1.%d or a newer 1.x, got %s; install one",
                    ORT_VERSION_OF_TABLE, v->version);
    ort_read_table(table, &v->api);
    return VAE_OK;
}

/* Turn a status of ONNX Runtime into ours. */
static vae_status failed(const vae *v, vae_status kind, const char *where, ort_status *error) {
    if (!error) return VAE_OK;
    vae_status status = fail(kind, "%s: ONNX Runtime %s: %.500s", where, v->version, v->api.error_message(error));
    v->api.release_status(error);
    return status;
}

static int is_digits(const char *text) { return *text && text[strspn(text, "0123456789")] == 0 && strlen(text) <= 4; }

/* Add the execution provider of a device to a session's options. */
static vae_status add_device(const vae *v, ort_options *options) {
    const char *provider = v->device;
    char **names = NULL;
    int count = 0, there = 0;
    if (!strcmp(provider, "cpu")) return VAE_OK;
    int is_cuda = !strcmp(provider, "cuda") || (!strncmp(provider, "cuda:", 5) && is_digits(provider + 5));
    if (is_cuda) provider = "CUDAExecutionProvider";
    vae_status status = failed(v, VAE_DEVICE, "device", v->api.available_providers(&names, &count));
    if (status) return status;
    for (int i = 0; i < count; i++) there |= !strcmp(names[i], provider);
    status = failed(v, VAE_DEVICE, "device", v->api.release_providers(names, count));
    if (status) return status;
    if (!there)
        return fail(VAE_DEVICE,
                    "device %s: expected an ONNX Runtime with %s, got %s without it; give another library or device",
                    v->device, provider, v->version);
    if (!is_cuda) {
        /* Providers are added by their names without the ending. */
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)(strlen(provider) - strlen("ExecutionProvider")), provider);
        return failed(v, VAE_DEVICE, v->device, v->api.add_provider(options, name, NULL, NULL, 0));
    }
    /* TF32 rounds the factors of a matrix product to 10 bits: three decimal digits, where parity needs six. */
    const char *const keys[] = {"device_id", "use_tf32"};
    const char *const values[] = {v->device[4] ? v->device + 5 : "0", "0"};
    ort_cuda *cuda = NULL;
    status = failed(v, VAE_DEVICE, v->device, v->api.create_cuda(&cuda));
    if (!status) status = failed(v, VAE_DEVICE, v->device, v->api.update_cuda(cuda, keys, values, 2));
    if (!status) status = failed(v, VAE_DEVICE, v->device, v->api.add_cuda(options, cuda));
    if (cuda) v->api.release_cuda(cuda);
    return status;
}

static vae_status check_device(const char *device) {
    static const char ENDING[] = "ExecutionProvider";
    size_t length = strlen(device), ending = sizeof ENDING - 1;
    int is_known =
        !strcmp(device, "cpu") || !strcmp(device, "cuda") || (!strncmp(device, "cuda:", 5) && is_digits(device + 5));
    int is_provider = length > ending && length < 64 && !strcmp(device + length - ending, ENDING);
    return is_known || is_provider
               ? VAE_OK
               : fail(
                     VAE_INPUT,
                     "device: expected cpu, cuda, cuda:N or the name of an execution provider, got '%.80s'; choose one",
                     device);
}

/* Read a listed file, and hold it against its hash. The caller gives the bytes back. */
static vae_status read_listed(const vae *v, const char *name, uint64_t limit, bytes *content) {
    unsigned char digest[32];
    char text[65];
    const sum *listed = find_sum(v->sums, v->sum_count, name);
    if (!listed) return fail(VAE_BUNDLE, "%s/%s: not listed in " SUMS "; copy the bundle again", v->place.root, name);
    vae_status status = read_file(&v->allocator, &v->place, name, limit, content);
    if (status) return status;
    sha256(content->data, content->size, digest);
    hexadecimal(digest, text);
    if (!memcmp(text, listed->hash, 64)) return VAE_OK;
    give(&v->allocator, content->data);
    *content = (bytes){NULL, 0};
    return fail(VAE_BUNDLE, "%s/%s: expected the SHA-256 %.64s, got %s; copy the bundle again", v->place.root, name,
                listed->hash, text);
}

/* Whether a graph's tensor is the manifest's: its dtype, a batch that is open or of one, and its sizes. */
static vae_status fits(const vae *v, const char *where, const tensor *t, int one_row, ort_type *type) {
    const ort_shape *shape = NULL;
    int64_t sizes[VAE_AXES + 1];
    size_t rank = 0;
    int element = 0;
    vae_status status = failed(v, VAE_BUNDLE, where, v->api.tensor_type(type, &shape));
    if (!status && shape) status = failed(v, VAE_BUNDLE, where, v->api.element_type(shape, &element));
    if (!status && shape) status = failed(v, VAE_BUNDLE, where, v->api.axis_count(shape, &rank));
    if (status) return status;
    int right = shape && element == t->type && rank == t->rank + 1;
    if (right) {
        status = failed(v, VAE_BUNDLE, where, v->api.axis_sizes(shape, sizes, rank));
        if (status) return status;
        right = sizes[0] == (one_row ? 1 : -1);
        for (size_t i = 0; i < t->rank; i++)
            right = right && sizes[i + 1] == (t->proven[i].step ? -1 : (int64_t)t->sizes[i]);
    }
    return right ? VAE_OK
                 : fail(VAE_BUNDLE,
                        "%s: %s: expected the dtype and shape of the manifest, the graph has others; export the bundle "
                        "again",
                        where, t->name);
}

/* Hold the inputs or the outputs of a graph against the manifest's. */
static vae_status check_tensors(const vae *v, const char *where, const network *n, const signature *expected,
                                int are_outputs) {
    const ort_api *api = &v->api;
    ort_allocator *allocator = NULL;
    size_t count = 0;
    vae_status status = failed(v, VAE_FAILED, where, api->default_allocator(&allocator));
    if (!status)
        status = failed(v, VAE_FAILED, where, (are_outputs ? api->output_count : api->input_count)(n->session, &count));
    if (!status && count != expected->count)
        status = fail(VAE_BUNDLE, "%s: expected %zu %s as in the manifest, the graph has %zu; export the bundle again",
                      where, expected->count, are_outputs ? "outputs" : "inputs", count);
    for (size_t i = 0; !status && i < count; i++) {
        char *name = NULL;
        ort_type *type = NULL;
        const tensor *t = NULL;
        status = failed(v, VAE_FAILED, where,
                        (are_outputs ? api->output_name : api->input_name)(n->session, i, allocator, &name));
        for (size_t j = 0; !status && j < expected->count; j++)
            if (!strcmp(expected->tensors[j].name, name)) t = &expected->tensors[j];
        if (!status && !t)
            status = fail(
                VAE_BUNDLE,
                "%s: expected the inputs and outputs of the manifest, the graph has %.80s; export the bundle again",
                where, name);
        if (!status)
            status =
                failed(v, VAE_FAILED, where, (are_outputs ? api->output_type : api->input_type)(n->session, i, &type));
        if (!status) status = fits(v, where, t, v->manifest.one_row[n->component], type);
        if (type) api->release_type(type);
        if (name) {
            ort_status *freed = api->release_memory_of(allocator, name);
            if (freed) api->release_status(freed);
        }
    }
    return status;
}

static vae_status add_weights(const vae *v, const char *where, ort_options *options, const char *file, bytes data) {
#ifdef _WIN32
    wchar_t name[1024];
    if (!MultiByteToWideChar(CP_UTF8, 0, file, -1, name, 1024))
        return fail(VAE_BUNDLE, "%s: %s: expected a shorter name; export the bundle again", where, file);
#else
    const char *name = file;
#endif
    const ort_char *names[] = {name};
    char *buffers[] = {(char *)data.data};
    return failed(v, VAE_BUNDLE, where, v->api.add_data(options, names, buffers, &data.size, 1));
}

/* A network of a variant, whose graph is not loaded yet; with `is_stream` of its graph for chunks. */
static network network_for(const vae *v, int component, const variant *each, int is_stream) {
    const manifest *m = &v->manifest;
    if (!each) return (network){component, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0};
    return (network){component,
                     each,
                     is_stream ? each->stream_path : each->path,
                     is_stream ? NULL : each->data,
                     is_stream ? &each->stream_inputs : &m->inputs[component],
                     is_stream ? &each->stream_outputs : &m->outputs[component],
                     NULL,
                     NULL,
                     0};
}

/* Load the graph of a network. */
static vae_status load_network(const vae *v, network *n) {
    char where[1200];
    bytes content = {NULL, 0}, data = {NULL, 0};
    ort_options *options = NULL;
    const ort_api *api = &v->api;
    snprintf(where, sizeof where, "%s/%s", v->place.root, n->path);
    vae_status status = read_listed(v, n->path, MAX_GRAPH, &content);
    if (!status && n->data) status = read_listed(v, n->variant->data_path, SIZE_MAX / 4, &data);
    if (!status) status = check_model(&v->allocator, where, content, n->data, data.size);
    if (!status) status = failed(v, VAE_FAILED, where, api->create_options(&options));
    if (!status) status = failed(v, VAE_FAILED, where, api->set_intra_threads(options, v->threads));
    if (!status) status = failed(v, VAE_FAILED, where, api->set_inter_threads(options, 1));
    if (!status) status = failed(v, VAE_FAILED, where, api->set_log_level(options, ORT_LOG_FATAL));
    if (!status) status = failed(v, VAE_FAILED, where, api->add_config(options, "session.load_model_format", "ONNX"));
    if (!status && n->data) status = add_weights(v, where, options, n->data, data);
    if (!status) status = add_device(v, options);
    if (!status)
        status = failed(v, strcmp(v->device, "cpu") ? VAE_DEVICE : VAE_BUNDLE, where,
                        api->create_session(v->env, content.data, content.size, options, &n->session));
    if (options) api->release_options(options);
    give(&v->allocator, content.data);
    give(&v->allocator, data.data);
    if (!status) status = check_tensors(v, where, n, n->inputs, 0);
    if (!status) status = check_tensors(v, where, n, n->outputs, 1);
    if (status && n->session) {
        api->release_session(n->session);
        n->session = NULL;
    }
    return status;
}

static vae_status check_open(const vae *v) {
    return v ? VAE_OK : fail(VAE_INPUT, "vae: expected an opened bundle, got NULL; look at what vae_open returned");
}

/* A component's network, loaded now if it was not yet. */
static vae_status network_of(vae *v, int component, network **result) {
    vae_status status = check_open(v);
    if (status) return status;
    network *n = *result = &v->networks[component];
    if (!n->variant && component == ENCODER && v->manifest.is_decoder_alone)
        return fail(VAE_BUNDLE, "%s: the model was exported without an encoder; export it with its encoder",
                    v->place.root);
    if (!n->variant)
        return fail(VAE_BUNDLE,
                    "%s: the %s was left out when this bundle was packed; use the bundle it was packed from, %s",
                    v->place.root, COMPONENT_OF[component],
                    v->manifest.packed_from ? v->manifest.packed_from : "which has both");
    MUTEX_LOCK(&v->loading);
    if (!n->session) status = load_network(v, n);
    MUTEX_UNLOCK(&v->loading);
    return status;
}

/* ----------------------------------------------------------------------------------------------------------- calls */

static int is_open(const tensor *t) {
    for (size_t i = 0; i < t->rank; i++)
        if (t->proven[i].step) return 1;
    return 0;
}

static size_t row_of(const tensor *t, const size_t *sizes) {
    size_t count = 1;
    for (size_t i = 0; i < t->rank; i++)
        if (!multiply(count, sizes[i], &count)) return SIZE_MAX;
    return count;
}

static void release_call(const vae *v, call *c, size_t input_count) {
    for (size_t i = 0; i < input_count; i++)
        if (c->inputs[i]) v->api.release_value(c->inputs[i]);
    for (size_t i = 0; i < c->wanted_count; i++)
        if (c->outputs[i]) v->api.release_value(c->outputs[i]);
    arena memory = c->memory;
    arena_release(&memory);
}

/* Memory for a tensor of a call, and ONNX Runtime's value over it. */
static vae_status make_value(const vae *v, call *c, const tensor *t, const size_t *sizes, void **data,
                             ort_value **value) {
    int64_t shape[VAE_AXES + 1] = {(int64_t)c->rows};
    size_t size = row_of(t, sizes);
    for (size_t i = 0; i < t->rank; i++) shape[i + 1] = (int64_t)sizes[i];
    if (!multiply(size, c->rows, &size) || !multiply(size, item_size(t->type), &size)) return no_memory(SIZE_MAX);
    *data = arena_take(&c->memory, size);
    if (!*data) return no_memory(size);
    return failed(v, VAE_FAILED, t->name,
                  v->api.create_tensor(v->cpu, *data, size, shape, t->rank + 1, t->type, value));
}

static vae_status make_call(const vae *v, int component, size_t rows, size_t (*sizes)[VAE_AXES],
                            const unsigned char *wanted, call **result) {
    const signature *in = &v->manifest.inputs[component], *out = &v->manifest.outputs[component];
    arena memory = {&v->allocator, NULL, NULL, 0};
    call *c = arena_array(&memory, 1, sizeof *c);
    if (!c) return no_memory(sizeof *c);
    c->memory = memory;
    c->rows = rows;
    c->sizes = arena_array(&c->memory, in->count, sizeof *c->sizes);
    c->wanted = arena_array(&c->memory, out->count, 1);
    c->inputs = arena_array(&c->memory, in->count, sizeof *c->inputs);
    c->outputs = arena_array(&c->memory, out->count, sizeof *c->outputs);
    c->input_data = arena_array(&c->memory, in->count, sizeof *c->input_data);
    c->output_data = arena_array(&c->memory, out->count, sizeof *c->output_data);
    c->input_names = arena_array(&c->memory, in->count, sizeof *c->input_names);
    c->output_names = arena_array(&c->memory, out->count, sizeof *c->output_names);
    if (!c->sizes || !c->wanted || !c->inputs || !c->outputs || !c->input_data || !c->output_data || !c->input_names ||
        !c->output_names) {
        memory = c->memory;
        arena_release(&memory);
        return no_memory(out->count * 64);
    }
    vae_status status = VAE_OK;
    memcpy(c->sizes, sizes, in->count * sizeof *sizes);
    memcpy(c->wanted, wanted, out->count);
    for (size_t i = 0; !status && i < in->count; i++) {
        c->input_names[i] = in->tensors[i].name;
        status = make_value(v, c, &in->tensors[i], sizes[i], &c->input_data[i], &c->inputs[i]);
    }
    for (size_t i = 0; !status && i < out->count; i++) {
        if (!wanted[i]) continue;
        size_t at = c->wanted_count++;
        c->output_names[at] = out->tensors[i].name;
        if (!is_open(&out->tensors[i]))
            status = make_value(v, c, &out->tensors[i], out->tensors[i].sizes, &c->output_data[at], &c->outputs[at]);
    }
    if (status)
        release_call(v, c, in->count);
    else
        *result = c;
    return status;
}

/* A call that no other thread uses, from those kept or a new one. */
static vae_status take_call(vae *v, network *n, size_t rows, size_t (*sizes)[VAE_AXES], const unsigned char *wanted,
                            call **result) {
    const signature *in = &v->manifest.inputs[n->component], *out = &v->manifest.outputs[n->component];
    *result = NULL;
    MUTEX_LOCK(&v->lock);
    for (call **at = &n->calls; *at; at = &(*at)->next) {
        call *c = *at;
        if (c->rows != rows || memcmp(c->wanted, wanted, out->count) ||
            memcmp(c->sizes, sizes, in->count * sizeof *sizes))
            continue;
        *at = c->next;
        n->call_count--;
        *result = c;
        break;
    }
    MUTEX_UNLOCK(&v->lock);
    return *result ? VAE_OK : make_call(v, n->component, rows, sizes, wanted, result);
}

/* Keep a call for the next one of its shape; of too many, the one that was not used for longest goes. */
static void keep_call(vae *v, network *n, call *c) {
    call *oldest = NULL;
    MUTEX_LOCK(&v->lock);
    c->next = n->calls;
    n->calls = c;
    if (++n->call_count > MAX_CALLS) {
        call **at = &n->calls;
        while ((*at)->next) at = &(*at)->next;
        oldest = *at;
        *at = NULL;
        n->call_count--;
    }
    MUTEX_UNLOCK(&v->lock);
    if (oldest) release_call(v, oldest, v->manifest.inputs[n->component].count);
}

static void release_network(const vae *v, network *n) {
    while (n->calls) {
        call *next = n->calls->next;
        release_call(v, n->calls, v->manifest.inputs[n->component].count);
        n->calls = next;
    }
    n->call_count = 0;
    if (n->session) v->api.release_session(n->session);
    n->session = NULL;
}

/* ------------------------------------------------------------------------------------------------------- the prior */

/* A checked vae_draw. */
typedef struct {
    uint64_t seed, start;
    float temperature;
    uint32_t nearest;
    size_t batch;
    int sampled, is_scaled; /* whether temperature or truncation are others than the usual */
} settings;

static vae_status check_draw(const vae_draw *draw, settings *s) {
    static const vae_draw USUAL = {0};
    const vae_draw *d = draw ? draw : &USUAL;
    double temperature = d->temperature == 0 ? 1 : d->temperature == VAE_COLD ? 0 : d->temperature;
    if (!(temperature >= 0 && temperature <= 1e6))
        return fail(VAE_INPUT, "temperature: expected a number from 0 to 1e6, got %g; choose another", d->temperature);
    if (d->truncation != 0 && !(d->truncation >= 0.01 && d->truncation <= 1e6))
        return fail(VAE_INPUT, "truncation: expected a number from 0.01 to 1e6, or 0 for none, got %g; choose another",
                    d->truncation);
    if ((d->condition_count && !d->conditions) || (d->shape_count && !d->shapes))
        return fail(VAE_INPUT, "draw: expected as many conditions and shapes as it counts, got NULL; give them");
    *s = (settings){d->seed,
                    d->start,
                    (float)temperature,
                    nearest_tail(d->truncation),
                    d->batch ? d->batch : 64,
                    d->sampled,
                    temperature != 1 || d->truncation != 0};
    return VAE_OK;
}

/* Read the parameters of a latent's mixture when they are first needed. */
static vae_status read_mixture(vae *v, size_t number) {
    const latent *l = &v->manifest.latents[number];
    mixture read = {NULL, NULL, NULL}, *kept = &v->mixtures[number];
    size_t elements = elements_of(&l->tensor), sizes[3] = {l->components, elements, elements};
    char where[1200], name[512];
    bytes file = {NULL, 0};
    double total = 0;
    snprintf(where, sizeof where, "%s/%s", v->place.root, l->prior_file);
    vae_status status = read_listed(v, l->prior_file, SIZE_MAX / 4, &file);
    const struct {
        const char *name;
        double **array;
        size_t rank;
    } PARTS[] = {
        {"weights", &read.weights, 1}, {"means", &read.means, 2}, {"factors", &read.factors, l->is_full ? 3 : 2}};
    for (size_t i = 0; !status && i < COUNT(PARTS); i++) {
        size_t count = 1;
        void *array = NULL;
        snprintf(name, sizeof name, "%s/%s", l->tensor.name, PARTS[i].name);
        status = read_array(&v->allocator, where, file, name, "<f8", PARTS[i].rank, sizes, &array);
        *PARTS[i].array = array;
        for (size_t axis = 0; axis < PARTS[i].rank; axis++) count *= sizes[axis];
        for (size_t k = 0; !status && k < count; k++)
            if (!isfinite((*PARTS[i].array)[k]))
                status =
                    fail(VAE_BUNDLE, "%s: %s: expected finite numbers, got NaN or infinity; export the bundle again",
                         where, name);
    }
    for (size_t k = 0; !status && k < l->components; k++) {
        total += read.weights[k];
        if (read.weights[k] < 0)
            status = fail(VAE_BUNDLE, "%s: weights: expected numbers of at least 0, got %g; export the bundle again",
                          where, read.weights[k]);
    }
    if (!status && fabs(total - 1) > 1e-6)
        status = fail(VAE_BUNDLE, "%s: weights: expected a sum of 1, got %g; export the bundle again", where, total);
    give(&v->allocator, file.data);
    if (status)
        for (size_t i = 0; i < COUNT(PARTS); i++) give(&v->allocator, *PARTS[i].array);
    else
        *kept = read;
    return status;
}

static void draw_mixture(const mixture *m, const latent *l, size_t number, const settings *s, uint64_t sample,
                         size_t elements, const float *eps, float *z) {
    float uniform;
    fill(s->seed, sample, 1, 1, (uint32_t)(CHOICE + 256 * number), UNIFORMS, 0, &uniform);
    double u = uniform, cumulative = 0;
    size_t k = l->components - 1;
    for (size_t i = 0; i < l->components; i++) {
        cumulative += m->weights[i];
        if (cumulative > u) {
            k = i;
            break;
        }
    }
    const double *mean = m->means + k * elements;
    for (size_t d = 0; d < elements; d++) {
        double value = mean[d];
        if (l->is_full) {
            const double *row = m->factors + (k * elements + d) * elements;
            for (size_t e = 0; e < elements; e++) value += row[e] * (double)eps[e];
        } else {
            value += m->factors[k * elements + d] * (double)eps[d];
        }
        z[d] = (float)value;
    }
}

static void draw_sphere(size_t elements, const float *eps, float *z) {
    double sum_of_squares = 0;
    for (size_t d = 0; d < elements; d++) sum_of_squares += (double)eps[d] * (double)eps[d];
    double length = sqrt(sum_of_squares);
    for (size_t d = 0; d < elements; d++) z[d] = (float)((double)eps[d] / length);
}

static scratch *take_scratch(vae *v) {
    MUTEX_LOCK(&v->lock);
    scratch *s = v->scratches;
    if (s) v->scratches = s->next;
    MUTEX_UNLOCK(&v->lock);
    return s ? s : take(&v->allocator, sizeof *s + v->largest * sizeof(float));
}

static void keep_scratch(vae *v, scratch *s) {
    MUTEX_LOCK(&v->lock);
    s->next = v->scratches;
    v->scratches = s;
    MUTEX_UNLOCK(&v->lock);
}

/* Whether a latent can be drawn, and what it needs for that. */
static vae_status prepare_prior(vae *v, size_t number, const settings *s) {
    const latent *l = &v->manifest.latents[number];
    vae_status status = VAE_OK;
    if (same_text(l->prior, "none"))
        return fail(VAE_INPUT, "%s: the bundle has no prior to draw from: %.300s; give latents to vae_decode",
                    l->tensor.name, l->prior_reason ? l->prior_reason : "no reason is given");
    if (same_text(l->prior, "sphere") && s->is_scaled)
        return fail(
            VAE_INPUT,
            "temperature and truncation: the prior of %s is uniform on a sphere and takes neither; leave them out",
            l->tensor.name);
    if (!same_text(l->prior, "mixture")) return VAE_OK;
    MUTEX_LOCK(&v->loading);
    if (!v->mixtures[number].weights) status = read_mixture(v, number);
    MUTEX_UNLOCK(&v->loading);
    return status;
}

/* Draw rows of a latent that is prepared, from row `first` of the settings on. */
static vae_status draw_latent(vae *v, size_t number, const settings *s, uint64_t first, size_t rows, size_t elements,
                              float *z) {
    const latent *l = &v->manifest.latents[number];
    uint32_t stream = (uint32_t)(PRIOR + 256 * number);
    int is_normal = same_text(l->prior, "normal"), is_mixture = same_text(l->prior, "mixture");
    scratch *noise = is_mixture ? take_scratch(v) : NULL;
    if (is_mixture && !noise) return no_memory(v->largest * sizeof(float));
    if (!is_mixture) draw_normal(s->seed, s->start + first, rows, elements, stream, s->nearest, s->temperature, z);
    for (size_t row = 0; !is_normal && row < rows; row++, z += elements) {
        if (!is_mixture) {
            draw_sphere(elements, z, z);
            continue;
        }
        uint64_t sample = s->start + first + row;
        draw_normal(s->seed, sample, 1, elements, stream, s->nearest, s->temperature, noise->eps);
        draw_mixture(&v->mixtures[number], l, number, s, sample, elements, noise->eps, z);
    }
    if (noise) keep_scratch(v, noise);
    return VAE_OK;
}

/* ------------------------------------------------------------------------------------------------------- arguments */

typedef enum { ZEROS, FROM_ARRAY, ONE_VALUE, FROM_PRIOR, FROM_NOISE } source;

/* The inputs of a graph, for any rows. */
typedef struct {
    struct {
        source source;
        const void *data;
        size_t latent;
        int64_t number; /* of a class that is given by name */
    } inputs[MAX_INPUTS];
    size_t sizes[MAX_INPUTS][VAE_AXES];
} feed;

/* Where outputs go: NULL where one is not wanted. `shape` takes the shape of a row of the first that is. */
typedef struct {
    void *to[MAX_OUTPUTS];
    size_t count; /* numbers in each */
    vae_shape *shape;
} results;

static const char *name_or(const char *name, const char *otherwise) { return name ? name : otherwise; }

/* The sizes of one row, held against the manifest's; `given` is NULL or of rank 0 for the usual ones. */
static vae_status check_sizes(const tensor *t, size_t rank, const size_t *given, size_t *sizes) {
    memset(sizes, 0, VAE_AXES * sizeof *sizes);
    if (rank && rank != t->rank)
        return fail(VAE_INPUT, "%s: expected %zu axes without that of rows, got %zu; give as many sizes", t->name,
                    t->rank, rank);
    for (size_t i = 0; i < t->rank; i++) {
        sizes[i] = rank ? given[i] : t->sizes[i];
        if (is_proven(t, i, sizes[i])) continue;
        if (!t->proven[i].step)
            return fail(VAE_INPUT, "%s: axis %zu: expected the size %zu, got %zu; give arrays of the manifest's shape",
                        t->name, i, t->sizes[i], sizes[i]);
        return fail(VAE_INPUT,
                    "%s: %s: expected a proven size, from %zu to %zu in steps of %zu, got %zu; choose one of these",
                    t->name, t->axes[i], t->proven[i].min, t->proven[i].max, t->proven[i].step, sizes[i]);
    }
    return VAE_OK;
}

static vae_status check_floats(const char *name, const float *values, size_t count, const range *r) {
    float low = r && r->given ? r->low : -FLT_MAX, high = r && r->given ? r->high : FLT_MAX;
    int right = 1;
    for (size_t i = 0; i < count; i++) right &= values[i] >= low && values[i] <= high;
    if (right) return VAE_OK;
    for (size_t i = 0;; i++)
        if (!(values[i] >= low && values[i] <= high))
            return fail(VAE_INPUT,
                        "%s: number %zu: expected a finite number from %g to %g, got %g; scale or clean the data", name,
                        i, low, high, values[i]);
}

static vae_status check_integers(const char *name, const int64_t *values, size_t count, double low, double high) {
    for (size_t i = 0; i < count; i++)
        if (!((double)values[i] >= low && (double)values[i] <= high))
            return fail(VAE_INPUT, "%s: number %zu: expected %g to %g, got %lld; choose another", name, i, low, high,
                        (long long)values[i]);
    return VAE_OK;
}

/* Check the numbers of an array, `rows` rows of `row` numbers, for a tensor of a dtype. */
static vae_status check_array(const vae_array *a, const char *name, int type, size_t rows, size_t row, const range *r,
                              int64_t codebook) {
    size_t count;
    const char *expected = type == ORT_INT64 ? "int64" : "float32", *got = a->integers ? "int64"
                                                                           : a->floats ? "float32"
                                                                                       : "nothing";
    if (a->class_name || (a->floats && a->integers) ||
        !(type == ORT_INT64 ? (const void *)a->integers : (const void *)a->floats))
        return fail(VAE_INPUT, "%s: expected numbers of %s alone, got %s; give them in .%s", name, expected,
                    a->class_name ? "the name of a class" : got, type == ORT_INT64 ? "integers" : "floats");
    if (!multiply(rows, row, &count) || a->count != count)
        return fail(VAE_INPUT, "%s: expected %zu rows of %zu numbers, got %zu numbers; give all of them", name, rows,
                    row, a->count);
    if (type == ORT_FLOAT) return check_floats(name, a->floats, count, r);
    if (codebook) return check_integers(name, a->integers, count, 0, (double)(codebook - 1));
    return r && r->given ? check_integers(name, a->integers, count, r->min, r->max) : VAE_OK;
}

static size_t input_index(const vae *v, int component, const char *name) {
    const signature *in = &v->manifest.inputs[component];
    size_t i = 0;
    while (i < in->count && strcmp(in->tensors[i].name, name)) i++;
    return i;
}

/* One condition, for each row or for all. */
static vae_status feed_condition(const condition *c, const vae_array *a, size_t n, feed *f, size_t input) {
    const tensor *t = &c->tensor;
    size_t row = elements_of(t), sizes[VAE_AXES];
    vae_status status = check_sizes(t, a->rank, a->sizes, sizes);
    if (status) return status;
    if (a->class_name) {
        if (a->floats || a->integers)
            return fail(VAE_INPUT, "%s: expected the name of a class alone, got numbers beside it; give one of them",
                        t->name);
        for (size_t i = 0; i < c->class_count; i++)
            if (!strcmp(c->classes[i], a->class_name)) {
                f->inputs[input].source = ONE_VALUE;
                f->inputs[input].number = (int64_t)i;
                return VAE_OK;
            }
        return fail(VAE_INPUT, "%s: expected one of its %zu classes, got '%.80s'; vae_info lists them", t->name,
                    c->class_count, a->class_name);
    }
    int is_one = a->count == row;
    status = check_array(a, t->name, t->type, is_one ? 1 : n, row, &c->range, (int64_t)c->class_count);
    f->inputs[input].source = is_one ? ONE_VALUE : FROM_ARRAY;
    f->inputs[input].data = t->type == ORT_INT64 ? (const void *)a->integers : (const void *)a->floats;
    return status;
}

static vae_status feed_conditions(const vae *v, int component, const vae_draw *draw, size_t n, feed *f) {
    const manifest *m = &v->manifest;
    size_t given = draw ? draw->condition_count : 0;
    for (size_t i = 0; i < given; i++) {
        size_t known = 0;
        const char *name = name_or(draw->conditions[i].name, "");
        for (size_t j = 0; j < m->condition_count; j++) known |= !strcmp(m->conditions[j].tensor.name, name);
        for (size_t j = 0; j < i; j++) known &= strcmp(name_or(draw->conditions[j].name, ""), name) != 0;
        if (!known)
            return fail(VAE_INPUT,
                        "conditions: expected names of the manifest, each once, got '%.80s'; vae_info lists them",
                        name);
    }
    for (size_t j = 0; j < m->condition_count; j++) {
        const condition *c = &m->conditions[j];
        const vae_array *value = NULL;
        if (!c->taken[component]) continue;
        for (size_t i = 0; i < given; i++)
            if (!strcmp(draw->conditions[i].name, c->tensor.name)) value = &draw->conditions[i];
        if (!value)
            return fail(VAE_INPUT, "conditions: expected '%s', got nothing; give it in draw.conditions",
                        c->tensor.name);
        vae_status status = feed_condition(c, value, n, f, input_index(v, component, c->tensor.name));
        if (status) return status;
    }
    return VAE_OK;
}

/* The number of a latent by its name; NULL names the only one. */
static vae_status latent_number(const vae *v, const char *name, size_t *number) {
    const manifest *m = &v->manifest;
    *number = 0;
    if (!name && m->latent_count > 1)
        return fail(VAE_INPUT, "latent: expected the name of one of %zu, got NULL; vae_info lists them",
                    m->latent_count);
    for (; name && *number < m->latent_count; ++*number)
        if (!strcmp(m->latents[*number].tensor.name, name)) return VAE_OK;
    return name ? fail(VAE_INPUT, "latent: expected a name of the manifest, got '%.80s'; vae_info lists them", name)
                : VAE_OK;
}

static vae_status check_rows(size_t n) {
    return n ? VAE_OK : fail(VAE_INPUT, "n: expected at least 1 row, got 0; give more");
}

/* The decoder's latents: the shapes that the caller gives, each drawn from its prior. */
static vae_status feed_prior(vae *v, const vae_draw *draw, const settings *s, feed *f) {
    for (size_t i = 0; i < v->manifest.latent_count; i++) {
        const latent *l = &v->manifest.latents[i];
        vae_status status = check_sizes(&l->tensor, 0, NULL, f->sizes[i]);
        if (!status) status = prepare_prior(v, i, s);
        if (status) return status;
        f->inputs[i].source = FROM_PRIOR;
        f->inputs[i].latent = i;
    }
    for (size_t i = 0; draw && i < draw->shape_count; i++) {
        size_t number;
        vae_status status = latent_number(v, draw->shapes[i].name, &number);
        if (!status)
            status = check_sizes(&v->manifest.latents[number].tensor, draw->shapes[i].rank, draw->shapes[i].sizes,
                                 f->sizes[number]);
        if (status) return status;
    }
    return VAE_OK;
}

/* The sizes of a latent that is noise of the decoder: those of the axes by the same names of the latents that are
 * `given`, a bit for each. */
static void share_sizes(const vae *v, size_t number, uint64_t given, feed *f) {
    const tensor *t = &v->manifest.latents[number].tensor;
    for (size_t axis = 0; axis < t->rank; axis++)
        for (size_t i = 0; t->proven[axis].step && i < v->manifest.latent_count; i++) {
            const tensor *other = &v->manifest.latents[i].tensor;
            for (size_t j = 0; given >> i & 1 && j < other->rank; j++)
                if (same_text(other->axes[j], t->axes[axis])) f->sizes[number][axis] = f->sizes[i][j];
        }
}

/* The decoder's latents as they are given. Those that are noise may be left out: they are drawn, or zeros. */
static vae_status feed_latents(vae *v, size_t n, const vae_array *latents, size_t count, const settings *s, feed *f) {
    const manifest *m = &v->manifest;
    uint64_t given = 0;
    if (count && !latents) return fail(VAE_INPUT, "latents: expected %zu arrays, got NULL; give them", count);
    for (size_t i = 0; i < count; i++) {
        size_t number;
        vae_status status = latent_number(v, latents[i].name, &number);
        if (status) return status;
        const latent *l = &m->latents[number];
        if (given >> number & 1)
            return fail(VAE_INPUT, "latents: expected each name once, got '%s' twice; give one", l->tensor.name);
        status = check_sizes(&l->tensor, latents[i].rank, latents[i].sizes, f->sizes[number]);
        if (!status)
            status = check_array(&latents[i], l->tensor.name, l->tensor.type, n, row_of(&l->tensor, f->sizes[number]),
                                 NULL, l->codebook);
        if (status) return status;
        given |= (uint64_t)1 << number;
        f->inputs[number].source = FROM_ARRAY;
        f->inputs[number].data =
            l->tensor.type == ORT_INT64 ? (const void *)latents[i].integers : (const void *)latents[i].floats;
    }
    for (size_t i = 0; i < m->latent_count; i++) {
        if (given >> i & 1) continue;
        if (m->latents[i].mean || m->latents[i].value || !count)
            return fail(VAE_INPUT, "latents: expected %s, got nothing; give every latent by name",
                        m->latents[i].tensor.name);
        vae_status status = check_sizes(&m->latents[i].tensor, 0, NULL, f->sizes[i]);
        if (!status && s->sampled) status = prepare_prior(v, i, s);
        if (status) return status;
        share_sizes(v, i, given, f);
        f->inputs[i].source = s->sampled ? FROM_PRIOR : ZEROS;
        f->inputs[i].latent = i;
    }
    return VAE_OK;
}

/* The sizes of the noise that the encoder may take: latents grow in proportion to observations. */
static void size_noise(const vae *v, feed *f) {
    const tensor *x = &v->manifest.observation;
    for (size_t i = 0; i < v->manifest.latent_count; i++) {
        const latent *l = &v->manifest.latents[i];
        size_t *sizes = l->noise ? f->sizes[input_index(v, ENCODER, l->noise)] : NULL;
        for (size_t axis = 0; sizes && axis < l->tensor.rank; axis++)
            for (size_t j = 0; l->tensor.proven[axis].step && j < x->rank; j++)
                if (same_text(x->axes[j], l->tensor.axes[axis]))
                    sizes[axis] = l->tensor.sizes[axis] * f->sizes[0][j] / x->sizes[j];
    }
}

/* The encoder's observations, and the noise that it may take. */
static vae_status feed_observations(const vae *v, size_t n, const vae_array *x, const settings *s, feed *f) {
    const manifest *m = &v->manifest;
    const tensor *t = &m->observation;
    if (!x) return fail(VAE_INPUT, "%s: expected observations, got NULL; give them", t->name);
    if (x->name && strcmp(x->name, t->name))
        return fail(VAE_INPUT, "x: expected the name %s or NULL, got '%.80s'; leave it out", t->name, x->name);
    vae_status status = check_sizes(t, x->rank, x->sizes, f->sizes[0]);
    if (!status) status = check_array(x, t->name, t->type, n, row_of(t, f->sizes[0]), &m->observation_range, 0);
    f->inputs[0].source = FROM_ARRAY;
    f->inputs[0].data = t->type == ORT_INT64 ? (const void *)x->integers : (const void *)x->floats;
    for (size_t i = 0; i < m->latent_count; i++) {
        const latent *l = &m->latents[i];
        if (!l->noise) continue;
        size_t input = input_index(v, ENCODER, l->noise);
        f->inputs[input].source = s->sampled ? FROM_NOISE : ZEROS;
        f->inputs[input].latent = i;
    }
    size_noise(v, f);
    return status;
}

/* The usual sizes of all inputs, from which callers go on. */
static void start_feed(const vae *v, int component, feed *f) {
    const signature *in = &v->manifest.inputs[component];
    for (size_t i = 0; i < in->count; i++) {
        f->inputs[i].source = ZEROS;
        f->inputs[i].data = NULL;
        memcpy(f->sizes[i], in->tensors[i].sizes, sizeof f->sizes[i]);
    }
}

/* Write the rows from `first` on of one input. */
static vae_status fill_input(vae *v, const tensor *t, const feed *f, size_t input, const settings *s, size_t first,
                             size_t rows, void *to) {
    size_t row = row_of(t, f->sizes[input]), size = row * item_size(t->type);
    const unsigned char *from = f->inputs[input].data;
    uint32_t stream = (uint32_t)(POSTERIOR + 256 * f->inputs[input].latent);
    switch (f->inputs[input].source) {
    case ZEROS: memset(to, 0, rows * size); return VAE_OK;
    case FROM_ARRAY: memcpy(to, from + first * size, rows * size); return VAE_OK;
    case ONE_VALUE:
        if (!from) from = (const unsigned char *)&f->inputs[input].number;
        for (size_t i = 0; i < rows; i++) memcpy((unsigned char *)to + i * size, from, size);
        return VAE_OK;
    case FROM_PRIOR: return draw_latent(v, f->inputs[input].latent, s, first, rows, row, to);
    default:
        draw_normal(s->seed, s->start + first, rows, row, stream, 0, 1, to);
        return VAE_OK;
    }
}

/* Copy an output of known shape, or one that ONNX Runtime made, to where it goes. */
static vae_status copy_output(const vae *v, const tensor *t, call *c, size_t at, size_t n, size_t first,
                              const results *r, void *to) {
    const ort_api *api = &v->api;
    void *data = c->output_data[at];
    size_t row = elements_of(t), whole, rank = 0;
    int64_t sizes[VAE_AXES + 1] = {0};
    vae_status status = VAE_OK;
    if (!data) {
        ort_shape *shape = NULL;
        status = failed(v, VAE_FAILED, t->name, api->value_shape(c->outputs[at], &shape));
        if (!status) status = failed(v, VAE_FAILED, t->name, api->axis_count(shape, &rank));
        if (!status && rank != t->rank + 1)
            status = fail(VAE_BUNDLE, "%s: expected %zu axes, the graph gives %zu; export the bundle again", t->name,
                          t->rank + 1, rank);
        if (!status) status = failed(v, VAE_FAILED, t->name, api->axis_sizes(shape, sizes, rank));
        if (shape) api->release_shape(shape);
        if (!status) status = failed(v, VAE_FAILED, t->name, api->tensor_data(c->outputs[at], &data));
        if (status) return status;
        if (sizes[0] != (int64_t)c->rows)
            return fail(VAE_BUNDLE, "%s: expected %zu rows, the graph gives %lld; export the bundle again", t->name,
                        c->rows, (long long)sizes[0]);
        row = 1;
        for (size_t i = 1; i < rank; i++)
            if (!multiply(row, (size_t)sizes[i], &row)) return no_memory(SIZE_MAX);
    }
    if (r->shape) {
        *r->shape = (vae_shape){t->name, t->rank, {0}};
        for (size_t i = 0; i < t->rank; i++)
            r->shape->sizes[i] = c->output_data[at] ? t->sizes[i] : (size_t)sizes[i + 1];
        return VAE_OK;
    }
    if (!multiply(n, row, &whole) || whole != r->count)
        return fail(VAE_INPUT, "%s: expected room for %zu rows of %zu numbers, got %zu numbers; give as many", t->name,
                    n, row, r->count);
    size_t size = row * item_size(t->type);
    memcpy((unsigned char *)to + first * size, data, c->rows * size);
    return VAE_OK;
}

/* Run one call, and copy what it gives. */
static vae_status run_call(vae *v, network *n, call *c, const feed *f, const settings *s, size_t count, size_t first,
                           const results *r) {
    const signature *in = &v->manifest.inputs[n->component], *out = &v->manifest.outputs[n->component];
    vae_status status = VAE_OK;
    for (size_t i = 0; !status && i < in->count; i++)
        status = fill_input(v, &in->tensors[i], f, i, s, first, c->rows, c->input_data[i]);
    if (!status)
        status = failed(v, VAE_FAILED, n->variant->path,
                        v->api.run(n->session, NULL, c->input_names, (const ort_value *const *)c->inputs, in->count,
                                   c->output_names, c->wanted_count, c->outputs));
    for (size_t i = 0, at = 0; i < out->count; i++) {
        if (!c->wanted[i]) continue;
        if (!status) status = copy_output(v, &out->tensors[i], c, at, count, first, r, r->to[i]);
        if (!c->output_data[at] && c->outputs[at]) {
            v->api.release_value(c->outputs[at]);
            c->outputs[at] = NULL;
        }
        at++;
    }
    return status;
}

/* Refuse outputs that lie over inputs: one batch would write into rows that a later one reads. */
static vae_status check_apart(const signature *in, const signature *out, const feed *f, size_t count,
                              const results *r) {
    for (size_t i = 0; i < in->count; i++) {
        uintptr_t from = (uintptr_t)f->inputs[i].data;
        size_t size = row_of(&in->tensors[i], f->sizes[i]) * item_size(in->tensors[i].type);
        if (f->inputs[i].source == FROM_ARRAY) size *= count;
        for (size_t j = 0; from && j < out->count; j++) {
            uintptr_t to = (uintptr_t)r->to[j];
            if (to && to < from + size && from < to + r->count * item_size(out->tensors[j].type))
                return fail(VAE_INPUT, "%s: expected room apart from %s, got room that overlaps it; give another array",
                            out->tensors[j].name, in->tensors[i].name);
        }
    }
    return VAE_OK;
}

/* Compute the wanted outputs of a graph for `n` rows, in batches. */
static vae_status run_rows(vae *v, network *n, const feed *f, const settings *s, size_t count, const results *r) {
    const signature *out = &v->manifest.outputs[n->component];
    unsigned char wanted[MAX_OUTPUTS];
    size_t batch = v->manifest.one_row[n->component] ? 1 : s->batch, sizes[MAX_INPUTS][VAE_AXES];
    for (size_t i = 0; i < out->count; i++) {
        size_t whole;
        wanted[i] = r->to[i] != NULL;
        if (wanted[i] && !r->shape && !is_open(&out->tensors[i]) &&
            (!multiply(count, elements_of(&out->tensors[i]), &whole) || whole != r->count))
            return fail(VAE_INPUT, "%s: expected room for %zu rows of %zu numbers, got %zu numbers; give as many",
                        out->tensors[i].name, count, elements_of(&out->tensors[i]), r->count);
    }
    vae_status apart = check_apart(&v->manifest.inputs[n->component], out, f, count, r);
    if (apart) return apart;
    memcpy(sizes, f->sizes, v->manifest.inputs[n->component].count * sizeof *sizes);
    for (size_t first = 0; first < count;) {
        size_t rows = count - first < batch ? count - first : batch;
        call *c;
        vae_status status = take_call(v, n, rows, sizes, wanted, &c);
        if (status) return status;
        status = run_call(v, n, c, f, s, count, first, r);
        if (status) {
            release_call(v, c, v->manifest.inputs[n->component].count);
            return status;
        }
        keep_call(v, n, c);
        first += rows;
    }
    return VAE_OK;
}

/* ------------------------------------------------------------------------------------------------ public functions */

/* Whether the compiler fused a product and a sum, which gives other bits. */
static int is_fused(void) {
    volatile double inputs[] = {1 + 0x1p-27, 1 - 0x1p-27, -1};
    double a = inputs[0], b = inputs[1], c = inputs[2];
    return a * b + c != 0;
}

static vae_status check_digest(vae *v, const char *expected) {
    unsigned char digest[32];
    sha256(v->sums_content.data, v->sums_content.size, digest);
    memcpy(v->digest, "sha256:", 7);
    hexadecimal(digest, v->digest + 7);
    if (!expected) return VAE_OK;
    const char *hash = strncmp(expected, "sha256:", 7) ? expected : expected + 7;
    if (!is_hash(hash, strlen(hash)))
        return fail(VAE_INPUT,
                    "digest: expected \"sha256:\" and 64 hexadecimal digits, got '%.80s'; vae-runtime info prints it",
                    expected);
    if (strcmp(hash, v->digest + 7))
        return fail(VAE_BUNDLE, "%s: expected the digest %s, got %s; use the bundle that the digest belongs to",
                    v->place.root, expected, v->digest);
    return VAE_OK;
}

static vae_status require_listed(const vae *v, const char *name) {
    if (!name || find_sum(v->sums, v->sum_count, name)) return VAE_OK;
    return fail(VAE_BUNDLE, "%s/" SUMS ": %s, named by " MANIFEST ", is not listed; copy the bundle again",
                v->place.root, name);
}

/* Read SHA256SUMS and the manifest. */
static vae_status read_bundle(vae *v, const char *path, const char *digest) {
    char where[1200];
    bytes content = {NULL, 0};
    vae_status status = open_place(&v->memory, path, &v->place);
    if (!status) status = read_file(&v->allocator, &v->place, SUMS, MAX_DOCUMENT, &v->sums_content);
    if (!status) status = check_digest(v, digest);
    if (!status) status = read_sums(&v->memory, v->place.root, v->sums_content, &v->sums, &v->sum_count);
    if (!status) status = read_listed(v, MANIFEST, MAX_DOCUMENT, &content);
    snprintf(where, sizeof where, "%s/" MANIFEST, v->place.root ? v->place.root : "");
    if (!status) status = read_manifest(where, &v->memory, content, &v->manifest);
    give(&v->allocator, content.data);
    for (size_t i = 0; !status && i < v->manifest.variant_count; i++) {
        status = require_listed(v, v->manifest.variants[i].path);
        if (!status) status = require_listed(v, v->manifest.variants[i].data_path);
        if (!status) status = require_listed(v, v->manifest.variants[i].stream_path);
    }
    if (!status) status = require_listed(v, v->manifest.golden_file);
    for (size_t i = 0; !status && i < v->manifest.latent_count; i++)
        status = require_listed(v, v->manifest.latents[i].prior_file);
    return status;
}

/* Choose the variant of each component: the one of this name, or the first where a component has none of it. */
static vae_status choose_variants(vae *v, const char *name) {
    int named = 0;
    for (int component = 0; component < 2; component++) {
        const variant *first = NULL, *chosen = NULL;
        for (size_t i = 0; i < v->manifest.variant_count; i++) {
            const variant *each = &v->manifest.variants[i];
            if (each->component != component) continue;
            if (!first && same_text(each->executor, "ort")) first = each;
            if (same_text(each->name, name)) chosen = each;
        }
        if (chosen && !same_text(chosen->executor, "ort"))
            return fail(VAE_BUNDLE,
                        "%s: the variant '%.80s' of %s is not for ONNX Runtime; vae_info lists those that are",
                        v->place.root, name, COMPONENT_OF[component]);
        named |= chosen != NULL;
        v->networks[component] = network_for(v, component, chosen ? chosen : first, 0);
    }
    return !name || named ? VAE_OK
                          : fail(VAE_BUNDLE, "%s: expected the name of a variant, got '%.80s'; vae_info lists them",
                                 v->place.root, name);
}

static void describe_tensor(const tensor *t, vae_field *f) {
    f->name = t->name, f->is_integer = t->type == ORT_INT64, f->rank = t->rank, f->count = elements_of(t);
    memcpy(f->sizes, t->sizes, sizeof f->sizes);
    memcpy(f->axes, t->axes, sizeof f->axes);
    for (size_t i = 0; i < t->rank; i++) f->dynamic[i] = t->proven[i].step != 0;
}

static vae_status describe_bundle(vae *v) {
    const manifest *m = &v->manifest;
    vae_description *d = &v->description;
    vae_field *latents = arena_array(&v->memory, m->latent_count, sizeof *latents),
              *conditions = arena_array(&v->memory, m->condition_count, sizeof *conditions);
    const char **variants = arena_array(&v->memory, m->variant_count, sizeof *variants);
    if (!latents || !conditions || !variants) return no_memory(m->latent_count * sizeof *latents);
    d->name = m->name, d->description = m->description, d->license = m->license, d->digest = v->digest,
    d->likelihood = m->likelihood;
    d->device = v->device, d->onnxruntime = v->version;
    d->variant = v->networks[v->networks[DECODER].variant ? DECODER : ENCODER].variant->name;
    describe_tensor(&m->observation, &d->observation);
    describe_tensor(&m->outputs[DECODER].tensors[0], &d->output);
    for (size_t i = 0; i < m->latent_count; i++) {
        describe_tensor(&m->latents[i].tensor, &latents[i]);
        latents[i].kind = m->latents[i].posterior, latents[i].prior = m->latents[i].prior;
        if (latents[i].count > v->largest) v->largest = latents[i].count;
    }
    for (size_t i = 0; i < m->condition_count; i++) {
        describe_tensor(&m->conditions[i].tensor, &conditions[i]);
        conditions[i].classes = m->conditions[i].classes, conditions[i].class_count = m->conditions[i].class_count;
    }
    for (size_t i = 0; i < m->variant_count; i++) {
        if (!same_text(m->variants[i].executor, "ort")) continue;
        variants[d->variant_count] =
            arena_join(&v->memory, COMPONENT_OF[m->variants[i].component], "/", m->variants[i].name);
        if (!variants[d->variant_count++]) return no_memory(256);
    }
    d->latents = latents, d->latent_count = m->latent_count, d->conditions = conditions,
    d->condition_count = m->condition_count, d->variants = variants;
    return VAE_OK;
}

static vae_status open_all(vae *v, const char *path, const vae_options *o) {
    network *n;
    vae_status status = check_device(name_or(o->device, "cpu"));
    if (status) return status;
    if (o->threads < 0 || o->threads > 1024)
        return fail(VAE_INPUT, "threads: expected 1 to 1024, or 0 for 1, got %d; choose another", o->threads);
    if (is_fused())
        return fail(VAE_FAILED,
                    "vae-runtime: expected a build without fused multiply-add; compile with -ffp-contract=off");
    v->threads = o->threads ? o->threads : 1;
    v->device = arena_text(&v->memory, name_or(o->device, "cpu"), strlen(name_or(o->device, "cpu")));
    if (!v->device) return no_memory(64);
    status = read_bundle(v, path, o->digest);
    if (!status) status = choose_variants(v, o->variant);
    if (status) return status;
    v->mixtures = arena_array(&v->memory, v->manifest.latent_count, sizeof *v->mixtures);
    if (!v->mixtures) return no_memory(v->manifest.latent_count * sizeof *v->mixtures);
    status = open_runtime(v, o->onnxruntime);
    if (!status)
        status = failed(v, VAE_DEVICE, "ONNX Runtime", v->api.create_env(ORT_LOG_FATAL, "vae-runtime", &v->env));
    if (!status) status = failed(v, VAE_DEVICE, "ONNX Runtime", v->api.create_cpu_memory(0, 0, &v->cpu));
    if (!status) status = describe_bundle(v);
    return status ? status : network_of(v, v->networks[DECODER].variant ? DECODER : ENCODER, &n);
}

vae_status vae_open(const char *path, const vae_options *options, vae **opened) {
    static const vae_options USUAL = VAE_OPTIONS_INIT;
    const vae_options *o = options ? options : &USUAL;
    if (!opened) return fail(VAE_INPUT, "opened: expected a place for the bundle, got NULL; give one");
    *opened = NULL;
    if (!o->allocator.allocate != !o->allocator.release)
        return fail(VAE_INPUT, "allocator: expected both functions or none, got one; give the other");
    vae *v = take(&o->allocator, sizeof *v);
    if (!v) return no_memory(sizeof *v);
    memset(v, 0, sizeof *v);
    v->allocator = o->allocator;
    v->memory.from = &v->allocator;
    MUTEX_INIT(&v->lock);
    MUTEX_INIT(&v->loading);
    vae_status status = open_all(v, path, o);
    if (status)
        vae_close(v);
    else
        *opened = v;
    return status;
}

void vae_close(vae *v) {
    if (!v) return;
    for (int i = 0; i < 2; i++) release_network(v, &v->networks[i]);
    release_network(v, &v->chunks);
    if (v->cpu) v->api.release_memory(v->cpu);
    if (v->env) v->api.release_env(v->env);
    for (size_t i = 0; v->mixtures && i < v->manifest.latent_count; i++) {
        give(&v->allocator, v->mixtures[i].weights);
        give(&v->allocator, v->mixtures[i].means);
        give(&v->allocator, v->mixtures[i].factors);
    }
    while (v->scratches) {
        scratch *next = v->scratches->next;
        give(&v->allocator, v->scratches);
        v->scratches = next;
    }
    give(&v->allocator, v->sums_content.data);
    arena_release(&v->memory);
    MUTEX_DESTROY(&v->lock);
    MUTEX_DESTROY(&v->loading);
    vae_allocator allocator = v->allocator;
    give(&allocator, v);
}

const vae_description *vae_info(const vae *v) { return v ? &v->description : NULL; }

static vae_status check_out(const char *name, const void *out) {
    return out ? VAE_OK : fail(VAE_INPUT, "%s: expected room for numbers, got NULL; give an array", name);
}

vae_status vae_sample(vae *v, size_t n, const vae_draw *draw, float *x, size_t count) {
    settings s;
    feed f;
    network *decoder;
    results r = {{x}, count, NULL};
    vae_status status = network_of(v, DECODER, &decoder);
    if (!status) status = check_rows(n);
    if (!status) status = check_out("x", x);
    if (!status) status = check_draw(draw, &s);
    if (status) return status;
    start_feed(v, DECODER, &f);
    status = feed_conditions(v, DECODER, draw, n, &f);
    if (!status) status = feed_prior(v, draw, &s, &f);
    return status ? status : run_rows(v, decoder, &f, &s, n, &r);
}

vae_status vae_prior(vae *v, const char *name, size_t n, const vae_draw *draw, float *z, size_t count) {
    settings s;
    size_t number, sizes[VAE_AXES], whole, row;
    vae_status status = check_open(v);
    if (!status) status = latent_number(v, name, &number);
    if (!status) status = check_rows(n);
    if (!status) status = check_out("z", z);
    if (!status) status = check_draw(draw, &s);
    if (!status) status = prepare_prior(v, number, &s);
    if (status) return status;
    const tensor *t = &v->manifest.latents[number].tensor;
    status = check_sizes(t, 0, NULL, sizes);
    for (size_t i = 0; !status && draw && i < draw->shape_count; i++) {
        size_t shaped;
        status = latent_number(v, draw->shapes[i].name, &shaped);
        if (!status && shaped == number) status = check_sizes(t, draw->shapes[i].rank, draw->shapes[i].sizes, sizes);
    }
    if (status) return status;
    row = row_of(t, sizes);
    if (!multiply(n, row, &whole) || whole != count)
        return fail(VAE_INPUT, "%s: expected room for %zu rows of %zu numbers, got %zu numbers; give as many", t->name,
                    n, row, count);
    return draw_latent(v, number, &s, 0, n, row, z);
}

vae_status vae_decode(vae *v, size_t n, const vae_array *latents, size_t latent_count, const vae_draw *draw, float *x,
                      size_t count) {
    settings s;
    feed f;
    network *decoder;
    results r = {{x}, count, NULL};
    vae_status status = network_of(v, DECODER, &decoder);
    if (!status) status = check_rows(n);
    if (!status) status = check_out("x", x);
    if (!status) status = check_draw(draw, &s);
    if (status) return status;
    start_feed(v, DECODER, &f);
    status = feed_latents(v, n, latents, latent_count, &s, &f);
    if (!status) status = feed_conditions(v, DECODER, draw, n, &f);
    return status ? status : run_rows(v, decoder, &f, &s, n, &r);
}

/* Where one of the encoder's outputs goes; refused where the posterior has none. */
static vae_status want(const vae *v, const char *place, const char *output, void *to, results *r) {
    const signature *out = &v->manifest.outputs[ENCODER];
    if (!to) return VAE_OK;
    for (size_t i = 0; output && i < out->count; i++)
        if (!strcmp(out->tensors[i].name, output)) {
            if (r->to[i])
                return fail(VAE_INPUT, "posteriors: expected each latent once, got room for its %s twice; give one",
                            place);
            r->to[i] = to;
            return VAE_OK;
        }
    return fail(VAE_INPUT, "posteriors: expected no %s of this latent, got room for it; vae_info tells its kind",
                place);
}

vae_status vae_encode(vae *v, size_t n, const vae_array *x, const vae_draw *draw, const vae_posterior *posteriors,
                      size_t posterior_count) {
    settings s;
    feed f;
    network *encoder;
    vae_status status = network_of(v, ENCODER, &encoder);
    if (!status) status = check_rows(n);
    if (!status) status = check_draw(draw, &s);
    if (!status && (!posteriors || !posterior_count))
        status = fail(VAE_INPUT, "posteriors: expected at least one, got none; give room for a latent");
    if (status) return status;
    start_feed(v, ENCODER, &f);
    status = feed_observations(v, n, x, &s, &f);
    if (!status) status = feed_conditions(v, ENCODER, draw, n, &f);
    /* Latents of other sizes each have their own count: the graph runs once for all that share one. */
    for (size_t i = 0; !status && i < posterior_count; i++) {
        results r = {{NULL}, posteriors[i].count, NULL};
        int is_done = 0, wants = 0;
        for (size_t j = 0; j < i; j++) is_done |= posteriors[j].count == r.count;
        for (size_t j = i; !status && !is_done && j < posterior_count; j++) {
            const vae_posterior *q = &posteriors[j];
            size_t number;
            if (q->count != r.count) continue;
            status = latent_number(v, q->latent, &number);
            if (status) break;
            const latent *l = &v->manifest.latents[number];
            status = want(v, "mean", l->mean, q->mean, &r);
            if (!status) status = want(v, "std", l->std, q->std, &r);
            if (!status) status = want(v, "logvar", l->logvar, q->logvar, &r);
            if (!status) status = want(v, "value", l->codebook ? NULL : l->value, q->value, &r);
            if (!status) status = want(v, "codes", l->codebook ? l->value : NULL, q->codes, &r);
            wants |= q->mean || q->std || q->logvar || q->value || q->codes;
        }
        if (!status && !is_done && !wants)
            status = fail(VAE_INPUT, "posteriors: expected room for an output, got NULL; give an array");
        if (!status && !is_done) status = run_rows(v, encoder, &f, &s, n, &r);
    }
    return status;
}

vae_status vae_reparameterize(size_t n, size_t size, const float *mean, const float *std, size_t number,
                              const vae_draw *draw, float *z) {
    settings s;
    size_t whole;
    uint64_t elements = size;
    vae_status status = check_draw(draw, &s);
    if (status) return status;
    if (!mean || !std || !z) return fail(VAE_INPUT, "mean, std and z: expected arrays, got NULL; give all three");
    if (number >= 1u << 24 || elements > MAX_ELEMENTS || !multiply(n, size, &whole))
        return fail(VAE_INPUT, "size: expected at most 2^34 numbers of a latent, got %zu; give fewer", size);
    for (size_t row = 0; row < n; row++) {
        generator g = {s.seed, s.start + row, 0, (size + 3) / 4, (uint32_t)(POSTERIOR + 256 * number)};
        drawn eps;
        /* The buffer lets z be the same array as mean or std. */
        for (size_t first = 0, count; first < size; first += count) {
            count = size - first < 4 * LANES ? size - first : 4 * LANES;
            next_blocks(&g, (count + 3) / 4, NORMALS, s.nearest, &eps);
            for (size_t i = 0, at = row * size + first; i < count; i++, at++) {
                float scaled = eps.numbers[i];
                if (s.temperature != 1) scaled *= s.temperature;
                scaled *= std[at];
                z[at] = mean[at] + scaled;
            }
        }
    }
    return VAE_OK;
}

/* Room for the latents of `n` observations, one array after the other. */
typedef struct {
    vae_array arrays[MAX_LATENTS];
    vae_posterior posteriors[MAX_LATENTS];
    size_t count;
    void *memory[2 * MAX_LATENTS];
} latents_room;

static vae_status make_room(vae *v, size_t n, const vae_array *x, int sampled, latents_room *room) {
    vae_status status = VAE_OK;
    for (size_t i = 0; !status && i < v->manifest.latent_count; i++) {
        const latent *l = &v->manifest.latents[i];
        vae_shape shape = {NULL, x->rank, {0}}, z = {l->tensor.name, l->tensor.rank, {0}};
        size_t count = n, size;
        if (!l->mean && !l->value) continue;
        if (sampled && !l->mean)
            return fail(VAE_INPUT, "%s: there is no posterior distribution: %.300s; leave `sampled` out",
                        l->tensor.name, l->reason ? l->reason : "the encoder gives the latent itself");
        memcpy(shape.sizes, x->sizes, sizeof shape.sizes);
        memcpy(z.sizes, l->tensor.sizes, sizeof z.sizes);
        if (is_open(&l->tensor) && x->rank) status = vae_encoded_shape(v, &shape, l->tensor.name, &z);
        for (size_t j = 0; j < z.rank; j++)
            if (!multiply(count, z.sizes[j], &count)) return no_memory(SIZE_MAX);
        if (status || !multiply(count, 8, &size)) return status ? status : no_memory(SIZE_MAX);
        void *values = room->memory[2 * i] = take(&v->allocator, size);
        if (sampled) room->memory[2 * i + 1] = take(&v->allocator, size);
        if (!values || (sampled && !room->memory[2 * i + 1])) return no_memory(size);
        vae_array *a = &room->arrays[room->count];
        vae_posterior *q = &room->posteriors[room->count++];
        *q = (vae_posterior){l->tensor.name,
                             l->mean ? values : NULL,
                             room->memory[2 * i + 1],
                             NULL,
                             l->mean || l->codebook ? NULL : values,
                             l->codebook ? values : NULL,
                             count};
        *a = (vae_array){
            l->tensor.name, l->codebook ? NULL : values, l->codebook ? values : NULL, NULL, count, z.rank, {0}};
        memcpy(a->sizes, z.sizes, sizeof a->sizes);
    }
    return status;
}

vae_status vae_reconstruct(vae *v, size_t n, const vae_array *x, const vae_draw *draw, float *out, size_t count) {
    int sampled = draw && draw->sampled;
    vae_status status = check_open(v);
    if (status) return status;
    latents_room *room = take(&v->allocator, sizeof *room);
    if (!room) return no_memory(sizeof *room);
    memset(room, 0, sizeof *room);
    status = check_rows(n);
    if (!status && !x) status = fail(VAE_INPUT, "x: expected observations, got NULL; give them");
    if (!status) status = make_room(v, n, x, sampled, room);
    if (!status) status = vae_encode(v, n, x, draw, room->posteriors, room->count);
    for (size_t i = 0; sampled && !status && i < room->count; i++) {
        const vae_posterior *q = &room->posteriors[i];
        size_t number = 0;
        status = latent_number(v, q->latent, &number);
        if (!status) status = vae_reparameterize(n, q->count / n, q->mean, q->std, number, draw, q->mean);
    }
    if (!status) status = vae_decode(v, n, room->arrays, room->count, draw, out, count);
    for (size_t i = 0; i < COUNT(room->memory); i++) give(&v->allocator, room->memory[i]);
    give(&v->allocator, room);
    return status;
}

vae_status vae_decoded_shape(vae *v, const vae_shape *latents, size_t latent_count, vae_shape *x) {
    settings s;
    feed f;
    network *decoder;
    results r = {{x}, 0, x};
    vae_draw draw = {.shapes = latents, .shape_count = latent_count};
    vae_status status = network_of(v, DECODER, &decoder);
    if (!status) status = check_out("x", x);
    if (!status) status = check_draw(&draw, &s);
    if (status) return status;
    start_feed(v, DECODER, &f);
    uint64_t given = 0;
    for (size_t i = 0; i < latent_count; i++) {
        size_t number;
        status = latent_number(v, latents[i].name, &number);
        if (!status)
            status =
                check_sizes(&v->manifest.latents[number].tensor, latents[i].rank, latents[i].sizes, f.sizes[number]);
        if (status) return status;
        given |= (uint64_t)1 << number;
    }
    for (size_t i = 0; i < v->manifest.latent_count; i++)
        if (!(given >> i & 1) && !v->manifest.latents[i].mean && !v->manifest.latents[i].value)
            share_sizes(v, i, given, &f);
    return run_rows(v, decoder, &f, &s, 1, &r);
}

vae_status vae_encoded_shape(vae *v, const vae_shape *x, const char *name, vae_shape *z) {
    settings s;
    feed f;
    network *encoder;
    size_t number;
    results r = {{NULL}, 0, z};
    vae_status status = network_of(v, ENCODER, &encoder);
    if (!status) status = latent_number(v, name, &number);
    if (!status) status = check_out("z", z);
    if (!status) status = check_draw(NULL, &s);
    if (status) return status;
    start_feed(v, ENCODER, &f);
    status = x ? check_sizes(&v->manifest.observation, x->rank, x->sizes, f.sizes[0]) : VAE_OK;
    size_noise(v, &f);
    const latent *l = &v->manifest.latents[number];
    if (!status && !l->mean && !l->value)
        status =
            fail(VAE_INPUT, "%s: expected a latent that the encoder gives, got noise of the decoder; choose another",
                 l->tensor.name);
    if (!status) status = want(v, "shape", l->mean ? l->mean : l->value, z, &r);
    return status ? status : run_rows(v, encoder, &f, &s, 1, &r);
}

/* --------------------------------------------------------------------------------------------------------- streams */

struct vae_stream {
    vae *v;
    const network *network;
    arena memory;                               /* holds also this */
    size_t n, rows;                             /* all rows, and those of one run: 1 where the graph takes no more */
    size_t in_count, state_count, time, answer; /* decoder's inputs; states; the axes of time */
    size_t latent_room;                         /* bytes that the first of `inputs` has room for */
    int has_failed;                             /* within a chunk: the states are of another time than the caller's */
    void **inputs;                              /* the latents' chunk, and the conditions of all rows */
    float **states, **next;
    ort_value **values, **results;
    const char **input_names, **output_names;
};

static vae_status make_stream(vae *v, const network *n, size_t rows, const feed *f, const settings *s,
                              vae_stream **made) {
    const signature *in = n->inputs, *out = n->outputs;
    arena memory = {&v->allocator, NULL, NULL, 0};
    vae_stream *t = arena_array(&memory, 1, sizeof *t);
    if (!t) return no_memory(sizeof *t);
    *t = (vae_stream){
        .v = v, .network = n, .memory = memory, .n = rows, .rows = v->manifest.one_row[DECODER] ? 1 : rows};
    *made = t;
    t->state_count = out->count - 1, t->in_count = in->count - t->state_count;
    t->time = time_axis(&in->tensors[0]), t->answer = answer_axis(&v->manifest);
    t->inputs = arena_array(&t->memory, t->in_count, sizeof *t->inputs);
    t->states = arena_array(&t->memory, t->state_count, sizeof *t->states);
    t->next = arena_array(&t->memory, t->state_count, sizeof *t->next);
    t->values = arena_array(&t->memory, in->count, sizeof *t->values);
    t->results = arena_array(&t->memory, out->count, sizeof *t->results);
    t->input_names = arena_array(&t->memory, in->count, sizeof *t->input_names);
    t->output_names = arena_array(&t->memory, out->count, sizeof *t->output_names);
    if (!t->inputs || !t->states || !t->next || !t->values || !t->results || !t->input_names || !t->output_names)
        return no_memory(in->count * 64);
    for (size_t i = 0; i < in->count; i++) t->input_names[i] = in->tensors[i].name;
    for (size_t i = 0; i < out->count; i++) t->output_names[i] = out->tensors[i].name;
    for (size_t i = 0; i < t->state_count; i++) {
        size_t size;
        if (!multiply(elements_of(&out->tensors[i + 1]), rows, &size)) return no_memory(SIZE_MAX);
        t->states[i] = arena_array(&t->memory, size, sizeof(float));
        t->next[i] = arena_array(&t->memory, size, sizeof(float));
        if (!t->states[i] || !t->next[i]) return no_memory(size);
    }
    for (size_t i = 1; i < t->in_count; i++) {
        size_t size;
        if (!multiply(elements_of(&in->tensors[i]) * item_size(in->tensors[i].type), rows, &size))
            return no_memory(SIZE_MAX);
        t->inputs[i] = arena_take(&t->memory, size);
        if (!t->inputs[i]) return no_memory(size);
        vae_status status = fill_input(v, &in->tensors[i], f, i, s, 0, rows, t->inputs[i]);
        if (status) return status;
    }
    return VAE_OK;
}

static void release_stream(vae_stream *t) {
    give(&t->v->allocator, t->inputs ? t->inputs[0] : NULL);
    arena memory = t->memory;
    arena_release(&memory);
}

/* ONNX Runtime's value over rows of an array, from row `first` on. */
static vae_status view(const vae_stream *t, const tensor *tensor_of, const size_t *sizes, void *data, size_t first,
                       ort_value **value) {
    int64_t shape[VAE_AXES + 1] = {(int64_t)t->rows};
    size_t row = row_of(tensor_of, sizes) * item_size(tensor_of->type);
    for (size_t i = 0; i < tensor_of->rank; i++) shape[i + 1] = (int64_t)sizes[i];
    return failed(t->v, VAE_FAILED, tensor_of->name,
                  t->v->api.create_tensor(t->v->cpu, (unsigned char *)data + first * row, t->rows * row, shape,
                                          tensor_of->rank + 1, tensor_of->type, value));
}

/* Copy `length` values of time, from `from` on, of `rows` rows of arrays with others before and after that axis. */
static void copy_time(unsigned char *to, size_t to_length, size_t to_start, const unsigned char *from,
                      size_t from_length, size_t from_start, size_t length, size_t outer, size_t inner) {
    for (size_t i = 0; i < outer; i++)
        memcpy(to + (i * to_length + to_start) * inner, from + (i * from_length + from_start) * inner, length * inner);
}

static size_t product(const size_t *sizes, size_t start, size_t end) {
    size_t result = 1;
    for (size_t i = start; i < end; i++) result *= sizes[i];
    return result;
}

/* Run the graph for chunks on the rows from `first` on, whose latents' chunk lies in the first input. */
static vae_status run_part(vae_stream *t, const size_t *sizes, size_t length, size_t first, float *x, size_t whole,
                           size_t start) {
    const signature *in = t->network->inputs, *out = t->network->outputs;
    const ort_api *api = &t->v->api;
    const tensor *mean = &out->tensors[0];
    size_t hop = t->network->variant->hop, answer[VAE_AXES], rank = 0;
    int64_t given[VAE_AXES + 1] = {0};
    ort_shape *shape = NULL;
    void *data = NULL;
    vae_status status = VAE_OK;
    memcpy(answer, mean->sizes, sizeof answer);
    answer[t->answer] = length * hop;
    for (size_t i = 0; !status && i < in->count; i++) {
        size_t state = i - t->in_count;
        status = view(t, &in->tensors[i], i ? in->tensors[i].sizes : sizes,
                      i < t->in_count ? t->inputs[i] : t->states[state], first, &t->values[i]);
        if (!status && i >= t->in_count)
            status = view(t, &in->tensors[i], in->tensors[i].sizes, t->next[state], first, &t->results[state + 1]);
    }
    if (!status)
        status = failed(t->v, VAE_FAILED, t->network->path,
                        api->run(t->network->session, NULL, t->input_names, (const ort_value *const *)t->values,
                                 in->count, t->output_names, out->count, t->results));
    if (!status) status = failed(t->v, VAE_FAILED, mean->name, api->value_shape(t->results[0], &shape));
    if (!status) status = failed(t->v, VAE_FAILED, mean->name, api->axis_count(shape, &rank));
    if (!status && rank == mean->rank + 1)
        status = failed(t->v, VAE_FAILED, mean->name, api->axis_sizes(shape, given, rank));
    int right = !status && rank == mean->rank + 1 && given[0] == (int64_t)t->rows;
    for (size_t i = 0; right && i < mean->rank; i++) right = given[i + 1] == (int64_t)answer[i];
    if (!status && !right)
        status =
            fail(VAE_BUNDLE,
                 "%s: expected %zu values of time for %zu of the latent, got another shape; export the bundle again",
                 t->network->path, length * hop, length);
    if (!status) status = failed(t->v, VAE_FAILED, mean->name, api->tensor_data(t->results[0], &data));
    if (!status) {
        size_t outer = product(answer, 0, t->answer), inner = product(answer, t->answer + 1, mean->rank);
        float *rows = x + first * outer * whole * hop * inner;
        copy_time((unsigned char *)rows, whole * hop, start * hop, data, length * hop, 0, length * hop, t->rows * outer,
                  inner * sizeof *x);
    }
    if (shape) api->release_shape(shape);
    for (size_t i = 0; i < in->count + out->count; i++) {
        ort_value **value = i < in->count ? &t->values[i] : &t->results[i - in->count];
        if (*value) api->release_value(*value);
        *value = NULL;
    }
    return status;
}

/* Decode a checked chunk of `whole` values of time; one longer than any that is proven in parts. */
static vae_status decode_chunk(vae_stream *t, const void *z, const size_t *chunk, float *x) {
    const tensor *latent_of = &t->network->inputs->tensors[0];
    size_t whole = chunk[t->time], outer = t->n * product(chunk, 0, t->time),
           inner = product(chunk, t->time + 1, latent_of->rank) * item_size(latent_of->type),
           max = latent_of->proven[t->time].max;
    for (size_t start = 0, length; start < whole; start += length) {
        size_t sizes[VAE_AXES];
        length = whole - start < max ? whole - start : max;
        memcpy(sizes, chunk, sizeof sizes);
        sizes[t->time] = length;
        size_t room = outer * length * inner;
        if (room > t->latent_room) {
            give(&t->v->allocator, t->inputs[0]);
            t->latent_room = 0;
            t->inputs[0] = take(&t->v->allocator, room);
            if (!t->inputs[0]) return no_memory(room);
            t->latent_room = room;
        }
        copy_time(t->inputs[0], length, 0, z, whole, start, length, outer, inner);
        for (size_t first = 0; first < t->n; first += t->rows) {
            vae_status status = run_part(t, sizes, length, first, x, whole, start);
            if (status) return status;
        }
        float **states = t->states;
        t->states = t->next;
        t->next = states;
    }
    return VAE_OK;
}

/* The decoder's graph for chunks, loaded now if it was not yet. */
static vae_status chunks_of(vae *v) {
    vae_status status = check_open(v);
    if (status) return status;
    const variant *each = v->networks[DECODER].variant;
    if (!each) {
        network *n;
        return network_of(v, DECODER, &n);
    }
    if (!each->stream_path) {
        const char *reason = text_of(each->stream, "reason");
        return fail(VAE_INPUT,
                    "stream: expected a causal decoder, got one that takes no chunks: %.300s; use vae_decode",
                    reason ? reason : "its manifest has no stream");
    }
    MUTEX_LOCK(&v->loading);
    if (!v->chunks.session) {
        v->chunks = network_for(v, DECODER, each, 1);
        status = load_network(v, &v->chunks);
    }
    MUTEX_UNLOCK(&v->loading);
    return status;
}

vae_status vae_stream_open(vae *v, size_t n, const vae_draw *draw, vae_stream **opened) {
    settings s;
    feed f;
    vae_stream *made = NULL;
    if (!opened) return fail(VAE_INPUT, "opened: expected a place for the stream, got NULL; give one");
    *opened = NULL;
    vae_status status = chunks_of(v);
    if (!status) status = check_rows(n);
    if (!status) status = check_draw(draw, &s);
    if (status) return status;
    start_feed(v, DECODER, &f);
    status = feed_conditions(v, DECODER, draw, n, &f);
    if (!status) status = make_stream(v, &v->chunks, n, &f, &s, &made);
    if (status && made)
        release_stream(made);
    else
        *opened = made;
    return status;
}

vae_status vae_stream_decode(vae_stream *t, const vae_array *z, float *x, size_t count) {
    if (!t) return fail(VAE_INPUT, "stream: expected an open one, got NULL; look at what vae_stream_open returned");
    const tensor *latent_of = &t->network->inputs->tensors[0], *mean = &t->network->outputs->tensors[0];
    size_t chunk[VAE_AXES] = {0}, answer[VAE_AXES], whole;
    if (!z || !x) return fail(VAE_INPUT, "z and x: expected arrays, got NULL; give both");
    if (t->has_failed)
        return fail(VAE_INPUT, "stream: expected one without an error, got one that failed; begin another stream");
    if (z->rank && z->rank != latent_of->rank)
        return fail(VAE_INPUT, "%s: expected %zu axes without that of rows, got %zu; give as many sizes",
                    latent_of->name, latent_of->rank, z->rank);
    for (size_t i = 0; i < latent_of->rank; i++) {
        chunk[i] = z->rank ? z->sizes[i] : latent_of->sizes[i];
        if (i == t->time ? !chunk[i] || chunk[i] > (size_t)1 << 31 : chunk[i] != latent_of->sizes[i])
            return fail(VAE_INPUT,
                        "%s: axis %zu: expected the size %zu, or of time at least 1, got %zu; give another chunk",
                        latent_of->name, i, latent_of->sizes[i], chunk[i]);
    }
    if (row_of(latent_of, chunk) > SIZE_MAX / 64 / t->n) return no_memory(SIZE_MAX);
    vae_status status = check_array(z, latent_of->name, latent_of->type, t->n, row_of(latent_of, chunk), NULL,
                                    t->v->manifest.latents[0].codebook);
    if (status) return status;
    memcpy(answer, mean->sizes, sizeof answer);
    if (!multiply(chunk[t->time], t->network->variant->hop, &answer[t->answer])) return no_memory(SIZE_MAX);
    whole = row_of(mean, answer);
    if (!multiply(whole, t->n, &whole) || whole != count)
        return fail(VAE_INPUT, "x: expected room for %zu numbers, got %zu; give as many", whole, count);
    const void *values = latent_of->type == ORT_INT64 ? (const void *)z->integers : (const void *)z->floats;
    if ((uintptr_t)x < (uintptr_t)values + z->count * item_size(latent_of->type) &&
        (uintptr_t)values < (uintptr_t)(x + count))
        return fail(VAE_INPUT, "x: expected room apart from %s, got room that overlaps it; give another array",
                    latent_of->name);
    status = decode_chunk(t, values, chunk, x);
    t->has_failed = status != VAE_OK;
    return status;
}

size_t vae_stream_hop(const vae_stream *t) { return t ? t->network->variant->hop : 0; }

void vae_stream_close(vae_stream *t) {
    if (t) release_stream(t);
}

/* ---------------------------------------------------------------------------------------------------- verification */

typedef struct {
    vae *v;
    vae_check check;
    void *context;
    int has_failed;
    char first[sizeof last_error];
} verification;

static void report(verification *r, const char *what, int passed, const char *detail) {
    char copy[sizeof last_error];
    snprintf(copy, sizeof copy, "%s", detail);
    if (!passed && !r->has_failed) {
        r->has_failed = 1;
        snprintf(r->first, sizeof r->first, "%s", copy);
    }
    if (r->check) r->check(r->context, what, passed, copy);
}

/* Report a file that is not listed. */
static int check_listed(verification *r, const char *name) {
    int is_beside = name[0] == '.' || !strcmp(name, "model.sig");
    if (is_beside || !strcmp(name, SUMS) || find_sum(r->v->sums, r->v->sum_count, name)) return 1;
    fail(VAE_BUNDLE, "%s/%s: not listed in " SUMS "; remove it, or copy the bundle again", r->v->place.root, name);
    report(r, "files", 0, last_error);
    return 0;
}

#define MAX_FOLDERS 1000
#define MAX_PATH_SIZE 4096

/* Look at each entry of a folder of the bundle, and of the folders in it. `path` is the folder's, with a slash at its
 * end, in room for MAX_PATH_SIZE bytes; from `root` on it is the name in the bundle. */
static int check_folder(verification *r, char *path, size_t root, size_t *folders) {
    size_t length = strlen(path);
    int right = 1;
    if (++*folders > MAX_FOLDERS || length - root > 1024) {
        fail(VAE_BUNDLE, "%s: expected at most %d folders; copy the bundle again", r->v->place.root, MAX_FOLDERS);
        return report(r, "files", 0, last_error), 0;
    }
#ifdef _WIN32
    WIN32_FIND_DATAA entry;
    snprintf(path + length, MAX_PATH_SIZE - length, "*");
    HANDLE folder = FindFirstFileA(path, &entry);
    int more = folder != INVALID_HANDLE_VALUE, is_read = more;
    for (; more && right; more = FindNextFileA(folder, &entry)) {
        const char *file = entry.cFileName;
#else
    DIR *folder = opendir(path);
    int is_read = folder != NULL;
    for (struct dirent *entry; folder && right && (entry = readdir(folder));) {
        const char *file = entry->d_name;
#endif
        stat_of status;
        if (!strcmp(file, ".") || !strcmp(file, "..")) continue;
        int written = snprintf(path + length, MAX_PATH_SIZE - length, "%s", file);
        if (written < 0 || (size_t)written + 2 > MAX_PATH_SIZE - length) {
            is_read = 0;
            break;
        }
        int is_folder = path[root] != '.' && !status_of(path, &status) && IS_FOLDER(status.st_mode);
        if (is_folder) memcpy(path + length + written, "/", 2);
        right = is_folder ? check_folder(r, path, root, folders) : check_listed(r, path + root);
    }
    path[length] = 0;
#ifdef _WIN32
    if (folder != INVALID_HANDLE_VALUE) FindClose(folder);
#else
    if (folder) closedir(folder);
#endif
    if (!is_read) {
        fail(VAE_BUNDLE, "%s/%s: the folder cannot be read; copy the bundle again", r->v->place.root, path + root);
        report(r, "files", 0, last_error);
    }
    return right && is_read;
}

static int check_files(verification *r) {
    vae *v = r->v;
    size_t folders = 0;
    int right = 1;
    for (size_t i = 0; i < v->place.count; i++) right &= check_listed(r, v->place.members[i].name);
    if (!v->place.is_zip) {
        char path[MAX_PATH_SIZE];
        snprintf(path, sizeof path, "%.3000s/", v->place.location);
        right = check_folder(r, path, strlen(path), &folders);
    }
    for (size_t i = 0; i < v->sum_count; i++) {
        bytes content = {NULL, 0};
        if (read_listed(v, v->sums[i].path, SIZE_MAX / 4, &content)) {
            report(r, "files", 0, last_error);
            right = 0;
        }
        give(&v->allocator, content.data);
    }
    char detail[160];
    snprintf(detail, sizeof detail, "%zu files, every SHA-256 as listed; %s", v->sum_count, v->digest);
    if (right) report(r, "files", 1, detail);
    return right;
}

/* How many bytes golden.npz has at most: twice its values, and headers. */
static uint64_t golden_limit(const manifest *m) {
    uint64_t limit = (uint64_t)1 << 20;
    for (size_t i = 0; i < m->variant_count + 2; i++) {
        int component = i < m->variant_count ? m->variants[i].component : (int)(i - m->variant_count);
        for (size_t j = 0; j < m->outputs[component].count + m->inputs[component].count; j++) {
            size_t outputs = m->outputs[component].count;
            const tensor *t =
                j < outputs ? &m->outputs[component].tensors[j] : &m->inputs[component].tensors[j - outputs];
            uint64_t elements = elements_of(t);
            if (elements > ((uint64_t)1 << 40) / m->golden_rows) return (uint64_t)1 << 40;
            limit += 16 * elements * m->golden_rows + 16384;
        }
    }
    return limit;
}

/* A stored array of the golden vectors, of `n` rows. */
static vae_status read_golden(const vae *v, bytes golden, const char *name, const tensor *t, void **array) {
    char where[1200];
    size_t sizes[VAE_AXES + 1] = {v->manifest.golden_rows};
    memcpy(sizes + 1, t->sizes, t->rank * sizeof *sizes);
    snprintf(where, sizeof where, "%s/%s", v->place.root, v->manifest.golden_file);
    return read_array(&v->allocator, where, golden, name, t->type == ORT_INT64 ? "<i8" : "<f4", t->rank + 1, sizes,
                      array);
}

static double value_at(const tensor *t, const void *array, size_t index) {
    return t->type == ORT_INT64 ? (double)((const int64_t *)array)[index] : (double)((const float *)array)[index];
}

/* The largest difference of two arrays; NaN where there is one. */
static double distance_of(const tensor *t, const void *a, const void *b, size_t count) {
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs(value_at(t, a, i) - value_at(t, b, i));
        if (!(difference <= largest)) largest = difference;
        if (isnan(largest)) break;
    }
    return largest;
}

static void compare_golden(verification *r, bytes golden, const variant *each, const char *how, const tensor *t,
                           const void *answer) {
    char name[1024], detail[256], what[640];
    void *own = NULL, *reference = NULL;
    size_t count = elements_of(t) * r->v->manifest.golden_rows;
    double tolerance = member_of(each->tolerance, t->name)->number, declared = member_of(each->error, t->name)->number;
    snprintf(what, sizeof what, "%s/%.200s %s%.200s", COMPONENT_OF[each->component], each->name, how, t->name);
    snprintf(name, sizeof name, "%s/%.400s/%.400s", COMPONENT_OF[each->component], each->name, t->name);
    vae_status status = read_golden(r->v, golden, name, t, &own);
    snprintf(name, sizeof name, "%s/pytorch/%.400s", COMPONENT_OF[each->component], t->name);
    if (!status) status = read_golden(r->v, golden, name, t, &reference);
    if (status) {
        report(r, what, 0, last_error);
    } else {
        double difference = distance_of(t, answer, own, count), distance = distance_of(t, own, reference, count);
        int holds = difference <= tolerance, passed = holds && distance <= declared;
        if (!holds)
            fail(VAE_BUNDLE,
                 "%s: expected the golden values within %.2g, got a difference of %.2g; this machine "
                 "computes otherwise: choose another variant or device",
                 what, tolerance, difference);
        else if (!passed)
            fail(VAE_BUNDLE,
                 "%s: expected a stored answer within %.2g of the reference, got %.2g; export the bundle "
                 "again",
                 what, declared, distance);
        snprintf(detail, sizeof detail, "max difference %.2g, tolerance %.2g; from the reference %.2g", difference,
                 tolerance, declared);
        report(r, what, passed, passed ? detail : last_error);
    }
    give(&r->v->allocator, own);
    give(&r->v->allocator, reference);
}

/* Whether one answer of the reference is what another makes of it, within 5 % and 0.001: of two outputs of one shape whose
 * roles are swapped, each passes every other check. */
static void check_role(verification *r, bytes golden, int component, const char *name, const char *from,
                       double (*role)(const tensor *, const void *, size_t)) {
    const signature *out = &r->v->manifest.outputs[component];
    const tensor *t = NULL;
    char path[512];
    void *answer = NULL, *source_of = NULL;
    for (size_t i = 0; i < out->count; i++)
        if (!strcmp(out->tensors[i].name, name)) t = &out->tensors[i];
    if (!t) return;
    snprintf(path, sizeof path, "%s/pytorch/%.400s", COMPONENT_OF[component], name);
    vae_status status = read_golden(r->v, golden, path, t, &answer);
    snprintf(path, sizeof path, "%s/pytorch/%.400s", COMPONENT_OF[component], from);
    if (!status) status = read_golden(r->v, golden, path, t, &source_of);
    size_t count = elements_of(t) * r->v->manifest.golden_rows;
    for (size_t i = 0; !status && i < count; i++) {
        double expected = role(t, source_of, i), got = value_at(t, answer, i);
        if (!(got == expected || fabs(got - expected) <= 1e-3 + 0.05 * fabs(expected)))
            status = fail(VAE_BUNDLE,
                          "%s: expected %.6g at number %zu of %.200s, got %.6g; the manifest swaps the roles of "
                          "outputs, or the bundle is "
                          "damaged: export it again",
                          path, expected, i, name, got);
    }
    if (status) report(r, "golden vectors", 0, last_error);
    give(&r->v->allocator, answer);
    give(&r->v->allocator, source_of);
}

static double std_of(const tensor *t, const void *logvar, size_t i) { return exp(value_at(t, logvar, i) / 2); }

static double mean_of(const tensor *t, const void *logits, size_t i) {
    return 0.5 + 0.5 * tanh(0.5 * value_at(t, logits, i));
}

/* The softmax along the last axis. */
static double probability_of(const tensor *t, const void *logits, size_t i) {
    size_t count = t->sizes[t->rank - 1], first = i / count * count;
    double total = 0;
    for (size_t j = first; j < first + count; j++) total += exp(value_at(t, logits, j) - value_at(t, logits, i));
    return 1 / total;
}

/* The most values of a latent that are drawn for golden vectors. */
#define MAX_DRAWN ((size_t)1 << 24)

static int check_golden(verification *r, bytes golden) {
    const manifest *m = &r->v->manifest;
    const node *likelihood = member_of(m->vae, "likelihood");
    for (size_t i = 0; i < m->latent_count; i++) {
        const latent *l = &m->latents[i];
        if (same_text(l->prior, "normal") && elements_of(&l->tensor) > MAX_DRAWN / m->golden_rows) {
            fail(VAE_BUNDLE, "%s/%s: expected at most %zu values of %s, got more; export the bundle again",
                 r->v->place.root, m->golden_file, MAX_DRAWN, l->tensor.name);
            return report(r, "golden vectors", 0, last_error), 0;
        }
        if (m->has[ENCODER] && l->std) check_role(r, golden, ENCODER, l->std, l->logvar, std_of);
    }
    int has_classes = same_text(m->likelihood, "categorical");
    if (m->has[DECODER] && (has_classes || same_text(m->likelihood, "bernoulli")) && text_of(likelihood, "logits"))
        check_role(r, golden, DECODER, text_of(likelihood, "mean"), text_of(likelihood, "logits"),
                   has_classes ? probability_of : mean_of);
    return 1;
}

/* The golden inputs of a component: stored, or drawn where the prior is normal. Arrays are taken, to be given back. */
static vae_status feed_golden(vae *v, int component, bytes golden, feed *f, void **arrays) {
    const manifest *m = &v->manifest;
    vae_status status = VAE_OK;
    start_feed(v, component, f);
    for (size_t i = 0; !status && i < m->inputs[component].count; i++) {
        const tensor *t = &m->inputs[component].tensors[i];
        int is_drawn = component == DECODER && i < m->latent_count && same_text(m->latents[i].prior, "normal");
        f->inputs[i].source = is_drawn ? FROM_PRIOR : FROM_ARRAY;
        f->inputs[i].latent = i;
        if (!is_drawn) status = read_golden(v, golden, t->name, t, &arrays[i]);
        f->inputs[i].data = arrays[i];
    }
    return status;
}

/* Decode golden latents in chunks of 1, 2, 3 … values of time. */
static vae_status decode_golden(vae_stream *t, const void *z, void *z_room, float *x, float *x_room) {
    const tensor *z_of = &t->network->inputs->tensors[0], *x_of = &t->network->outputs->tensors[0];
    size_t whole = z_of->sizes[t->time], hop = t->network->variant->hop, chunk[VAE_AXES];
    size_t outer = t->n * product(z_of->sizes, 0, t->time);
    size_t inner = product(z_of->sizes, t->time + 1, z_of->rank) * item_size(z_of->type);
    size_t answer_outer = t->n * product(x_of->sizes, 0, t->answer);
    size_t answer_inner = product(x_of->sizes, t->answer + 1, x_of->rank) * sizeof *x;
    if (x_of->sizes[t->answer] != whole * hop)
        return fail(VAE_BUNDLE, "%s: expected %zu values of time in an observation, got %zu; export the bundle again",
                    t->network->path, whole * hop, x_of->sizes[t->answer]);
    memcpy(chunk, z_of->sizes, sizeof chunk);
    for (size_t start = 0, number = 1; start < whole; start += chunk[t->time], number++) {
        chunk[t->time] = whole - start < number ? whole - start : number;
        copy_time(z_room, chunk[t->time], 0, z, whole, start, chunk[t->time], outer, inner);
        vae_status status = decode_chunk(t, z_room, chunk, x_room);
        if (status) return status;
        copy_time((unsigned char *)x, whole * hop, start * hop, (const unsigned char *)x_room, chunk[t->time] * hop, 0,
                  chunk[t->time] * hop, answer_outer, answer_inner);
    }
    return VAE_OK;
}

/* Replay the golden latents in chunks; the answer is that of the undivided graph. */
static void replay_stream(verification *r, bytes golden, const variant *each, const feed *f, const settings *s) {
    vae *v = r->v;
    network loaded = network_for(v, DECODER, each, 1);
    const tensor *z_of = &loaded.inputs->tensors[0], *x_of = &loaded.outputs->tensors[0];
    size_t n = v->manifest.golden_rows, z_size = 0, x_size = 0;
    vae_stream *t = NULL;
    char what[640];
    unsigned char *z = NULL;
    snprintf(what, sizeof what, "%s/%.200s stream", COMPONENT_OF[each->component], each->name);
    /* Both latents and answers twice: all of them, and those of a chunk. */
    int fits_memory = multiply(n, elements_of(z_of) * item_size(z_of->type), &z_size) &&
                      multiply(n, elements_of(x_of) * item_size(x_of->type), &x_size) && z_size < SIZE_MAX / 8 &&
                      x_size < SIZE_MAX / 8;
    size_t room = fits_memory ? 2 * (z_size + x_size) : SIZE_MAX;
    if (fits_memory) z = take(&v->allocator, room);
    float *x = z ? (float *)(void *)(z + 2 * z_size) : NULL;
    vae_status status = z ? load_network(v, &loaded) : no_memory(room);
    if (!status) status = make_stream(v, &loaded, n, f, s, &t);
    if (!status) status = fill_input(v, z_of, f, 0, s, 0, n, z);
    if (!status) status = decode_golden(t, z, z + z_size, x, x + x_size / sizeof *x);
    if (status)
        report(r, what, 0, last_error);
    else
        compare_golden(r, golden, each, "stream ", x_of, x);
    if (t) release_stream(t);
    give(&v->allocator, z);
    release_network(v, &loaded);
}

/* Replay the golden vectors on one variant. */
static void replay(verification *r, bytes golden, const variant *each) {
    vae *v = r->v;
    const signature *out = &v->manifest.outputs[each->component];
    size_t n = v->manifest.golden_rows;
    network loaded = network_for(v, each->component, each, 0);
    settings s = {v->manifest.golden_seed, 0, 1, 0, n, 0, 0};
    feed f;
    void *arrays[MAX_INPUTS] = {NULL}, *answers[MAX_OUTPUTS] = {NULL};
    char what[640];
    snprintf(what, sizeof what, "%s/%.200s", COMPONENT_OF[each->component], each->name);
    vae_status status = load_network(v, &loaded);
    if (!status) status = feed_golden(v, each->component, golden, &f, arrays);
    for (size_t i = 0; !status && i < out->count; i++) {
        results one = {{NULL}, 0, NULL};
        size_t size;
        if (!multiply(n, elements_of(&out->tensors[i]), &one.count) || !multiply(one.count, 8, &size) ||
            !(answers[i] = take(&v->allocator, size))) {
            status = no_memory(SIZE_MAX);
            break;
        }
        one.to[i] = answers[i];
        status = run_rows(v, &loaded, &f, &s, n, &one);
    }
    if (status) report(r, what, 0, last_error);
    for (size_t i = 0; !status && i < out->count; i++)
        compare_golden(r, golden, each, "", &out->tensors[i], answers[i]);
    if (!status && each->stream_path) replay_stream(r, golden, each, &f, &s);
    for (size_t i = 0; i < MAX_INPUTS; i++) give(&v->allocator, arrays[i]);
    for (size_t i = 0; i < MAX_OUTPUTS; i++) give(&v->allocator, answers[i]);
    release_network(v, &loaded);
}

vae_status vae_verify(vae *v, vae_check check, void *context) {
    verification r = {v, check, context, 0, ""};
    bytes golden = {NULL, 0};
    vae_status status = check_open(v);
    if (status) return status;
    check_files(&r);
    if (read_listed(v, v->manifest.golden_file, golden_limit(&v->manifest), &golden))
        report(&r, "golden vectors", 0, last_error);
    int is_right = golden.data && check_golden(&r, golden);
    for (size_t i = 0; is_right && i < v->manifest.variant_count; i++) {
        const variant *each = &v->manifest.variants[i];
        char what[640];
        snprintf(what, sizeof what, "%s/%.200s", COMPONENT_OF[each->component], each->name);
        if (same_text(each->executor, "ort"))
            replay(&r, golden, each);
        else
            report(&r, what, -1, "not run: it is not for ONNX Runtime");
    }
    give(&v->allocator, golden.data);
    return r.has_failed ? fail(VAE_BUNDLE, "%s", r.first) : VAE_OK;
}
