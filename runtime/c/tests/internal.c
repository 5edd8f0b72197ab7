/* What the functions of vae_runtime.h are made of: internal ONNXRUNTIME BUNDLES. The source is included, with its own
 * malloc counted: it takes memory nowhere but through its allocator. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include <locale.h>
#ifndef _WIN32
#include <sys/resource.h>
#endif
#include <stdlib.h>

static size_t allocations;

static void *counted(size_t size) {
    allocations++;
    return malloc(size);
}

#define malloc counted
#include "../vae_runtime.c"
#undef malloc

#include "check.h"

static const vae_allocator USUAL = {NULL, NULL, NULL};

static int has_hash(const char *text, size_t repeats, const char *expected) {
    size_t length = strlen(text);
    unsigned char *data = malloc(length * repeats + 1), digest[32];
    char found[65];
    for (size_t i = 0; i < repeats; i++) memcpy(data + i * length, text, length);
    sha256(data, length * repeats, digest);
    hexadecimal(digest, found);
    free(data);
    return !strcmp(found, expected);
}

/* FIPS 180-4's examples, and lengths about the padding's. */
static void test_hashes(void) {
    CHECK(has_hash("", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
    CHECK(has_hash("abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    CHECK(has_hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
                   "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"));
    CHECK(has_hash("a", 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
    CHECK(has_hash("a", 55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"));
    CHECK(has_hash("a", 56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"));
    CHECK(has_hash("a", 64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"));
    CHECK(!has_hash("abd", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    CHECK(crc32_of((const unsigned char *)"123456789", 9) == 0xCBF43926);
}

static const node *parsed(const char *text) {
    static arena memory = {&USUAL, NULL, NULL, 0};
    arena_release(&memory);
    return parse_json(&memory, (const unsigned char *)text, strlen(text), "text");
}

static double number_of(const char *text) {
    const node *value = parsed(text);
    CHECK(value && value->kind == NUMBER);
    return value->number;
}

static void test_json(void) {
    static const char *const RIGHT[] = {"{}",
                                        "[]",
                                        "null",
                                        " [1, 2.5e-3, -0, \"\\u20ac\\ud83d\\ude00\\n\"] ",
                                        "{\"a\": {\"a\": true}}",
                                        "\"\xE2\x82\xAC\"",
                                        "0"};
    static const char *const WRONG[] = {
        "",
        "[",
        "{",
        "[1,]",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "-",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "tru",
        "nul",
        "\"\\x\"",
        "\"\\ud800\"",
        "\"\\udc00\"",
        "\"\\ud800\\ud800\"",
        "\"\\u0000\"",
        "\"\n\"",
        "\"\xFF\"",
        "\"\xC0\x80\"",
        "\"\xED\xA0\x80\"",
        "\"\xF4\x90\x80\x80\"",
        "1 2",
        "\xEF\xBB\xBF{}",
        "{\"a\":1,\"b\":2,\"a\":3}",
        "'a'",
        "[1 2]",
        "\"a",
        "\"\\",
        "\"\\u12\"",
        "[\"a\" \"b\"]",
        "{\"a\":}",
        "//\n1",
    };
    for (size_t i = 0; i < COUNT(RIGHT); i++) CHECK(parsed(RIGHT[i]));
    for (size_t i = 0; i < COUNT(WRONG); i++) CHECK(!parsed(WRONG[i]));
    CHECK(!strcmp(parsed("\"\\u20ac\\ud83d\\ude00\\/\"")->text, "\xE2\x82\xAC\xF0\x9F\x98\x80/"));
    char deep[2 * (MAX_DEPTH + 1) + 1];
    for (int depth = MAX_DEPTH; depth <= MAX_DEPTH + 1; depth++) {
        memset(deep, '[', (size_t)depth), memset(deep + depth, ']', (size_t)depth);
        deep[2 * depth] = 0;
        CHECK(!parsed(deep) == (depth > MAX_DEPTH));
    }
    static const struct {
        const char *text;
        double number;
    } NUMBERS_READ[] = {{"0.1", 0.1},
                        {"1e-6", 1e-6},
                        {"4.283636569976807e-05", 4.283636569976807e-05},
                        {"9007199254740991", 9007199254740991.0},
                        {"-2.5", -2.5},
                        {"1e300", 1e300},
                        {"123456789012345678901234567890", 123456789012345678901234567890.0},
                        {"1e-400", 0},
                        {"0.00000000000000000000001", 1e-23},
                        {"1E+2", 100}};
    for (size_t i = 0; i < COUNT(NUMBERS_READ); i++) CHECK(number_of(NUMBERS_READ[i].text) == NUMBERS_READ[i].number);
    /* In a locale whose decimal point is a comma, where there is one. test.sh makes one, and names it by LOCPATH. */
    int has_locale = setlocale(LC_ALL, "de_DE.UTF-8") != NULL;
    CHECK(has_locale || !getenv("LOCPATH"));
    if (!has_locale) puts("skipped: a decimal comma: there is no locale de_DE.UTF-8");
    CHECK(number_of("0.0012072986364364624") == 12072986364364624e-19 && number_of("2.5e-1") == 0.25);
    setlocale(LC_ALL, "C");
    CHECK(number_of("0.1") == 0.1 && number_of("1e22") == 1e22 && number_of("-0.5e1") == -5);
}

/* An error is one printable line, whatever a bundle says. */
static void test_errors_are_printable(void) {
    fail(VAE_BUNDLE, "a\nb\x1b[31m\xC2\x9B\xE2\x80\xAE\xFF \xE2\x82\xAC");
    CHECK(!strcmp(vae_last_error(), "a?b?[31m?????? \xE2\x82\xAC"));
    char *text = malloc(5000);
    memset(text, 'x', 4999), text[4999] = 0;
    fail(VAE_BUNDLE, "%s", text);
    CHECK(strlen(vae_last_error()) == sizeof last_error - 1);
    free(text);
}

static void test_inflate(void) {
    /* zlib's raw streams of "abcabcabc…" in a fixed block, of 300 squares mod 251 in a dynamic one, and a stored block. */
    static const unsigned char FIXED[] = {0x4b, 0x4c, 0x4a, 0x4e, 0xa4, 0x0d, 0x02, 0x00},
                               STORED[] = {1, 3, 0, 0xFC, 0xFF, 'x', 'y', 'z'};
    unsigned char out[90], expected[90];
    for (size_t i = 0; i < sizeof expected; i++) expected[i] = (unsigned char)"abc"[i % 3];
    CHECK(inflate(FIXED, sizeof FIXED, out, 90) && !memcmp(out, expected, 90));
    CHECK(!inflate(FIXED, sizeof FIXED, out, 89) && !inflate(FIXED, sizeof FIXED - 2, out, 90));
    CHECK(inflate(STORED, sizeof STORED, out, 3) && !memcmp(out, "xyz", 3));
    CHECK(!inflate(STORED, sizeof STORED - 1, out, 3) && !inflate(STORED, 3, out, 3));
    for (unsigned type = 3; type < 256; type += 8)
        CHECK(!inflate((unsigned char[]){(unsigned char)(type | 7), 0, 0}, 3, out, 3));
}

static void test_arrays_in_the_other_order(void) {
    static const float FORTRAN[] = {1, 4, 2, 5, 3, 6};
    const size_t sizes[] = {2, 3};
    float out[6];
    from_fortran((const unsigned char *)FORTRAN, (unsigned char *)out, 2, sizes, 6, 4);
    for (int i = 0; i < 6; i++) CHECK(out[i] == (float)(i + 1));
    char header[512];
    npy_header(header, sizeof header, "<f4", 0, 0, NULL);
    CHECK(!strcmp(header, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }"));
    npy_header(header, sizeof header, "<f4", 1, 1, sizes);
    CHECK(!strcmp(header, "{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }"));
    npy_header(header, sizeof header, "<i8", 0, 2, sizes);
    CHECK(!strcmp(header, "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }"));
}

/* A member's name is also before its bytes, in 30 bytes and the name. */
static void test_names_in_npz_files(void) {
    unsigned char file[46 + 35 + 51 + 22] = {0}, *local = file, *entry = file + 36, *end = entry + 51;
    bytes content = {NULL, 0};
    memcpy(local, "PK\3\4", 4), memcpy(entry, "PK\1\2", 4), memcpy(end, "PK\5\6", 4);
    local[26] = entry[28] = 5, end[10] = 1, end[16] = 36;
    memcpy(local + 30, "a.npy", 5), memcpy(entry + 46, "a.npy", 5);
    entry[20] = entry[24] = 1, local[35] = '1';
    uint32_t crc = crc32_of(local + 35, 1);
    memcpy(entry + 16, &crc, 4);
    bytes z = {file, (size_t)(end - file) + 22};
    CHECK(unpack(&USUAL, "z", z, "a", 9, &content) == VAE_OK && content.size == 1 && content.data[0] == '1');
    free(content.data);
    local[30] = 'b';
    REFUSED(VAE_BUNDLE, "as numpy writes it", unpack(&USUAL, "z", z, "a", 9, &content));
}

/* A graph whose only input, of a size, is its output, and whose producer has a name of a length. */
static vae_status check_small(uint64_t size, size_t producer) {
    static unsigned char model[1 << 17];
    size_t at = 0, length;
    unsigned char output[32] = {0x0A, 1, 'y', 0x12, 0, 0x0A, 0, 0x08, 1, 0x12, 0, 0x0A, 0, 0x08};
    for (length = 14; size > 127; size >>= 7) output[length++] = (unsigned char)(0x80 | (size & 127));
    output[length++] = (unsigned char)size;
    for (size_t inner = 4; inner <= 12; inner += inner == 4 ? 2 : inner == 6 ? 4 : 2)
        output[inner] = (unsigned char)(length - inner - 1);
    const unsigned char head[] = {0x08, 8, 0x12, (unsigned char)(0x80 | (producer & 127)),
                                  (unsigned char)(0x80 | (producer >> 7 & 127)), (unsigned char)(producer >> 14)};
    memcpy(model, head, sizeof head);
    memset(model + sizeof head, 'p', producer);
    at = sizeof head + producer;
    model[at++] = 0x3A, model[at++] = (unsigned char)(2 * length + 4);
    for (unsigned char end = 0x5A; end <= 0x62; end += 8) {
        model[at++] = end, model[at++] = (unsigned char)length;
        memcpy(model + at, output, length);
        at += length;
    }
    return check_model(&USUAL, "model", (bytes){model, at}, NULL, 0);
}

static void test_limits_of_graphs(void) {
    static const unsigned char OPTIONS[] = "\x08\x08\x72\x0C\x0A\x0AOrt_Config";
    REFUSED(VAE_BUNDLE, "options of ONNX Runtime",
            check_model(&USUAL, "model", (bytes){(unsigned char *)OPTIONS, sizeof OPTIONS - 1}, NULL, 0));
    CHECK(check_small(3, 20000) == VAE_OK && check_small((uint64_t)1 << 40, 65536) == VAE_OK);
    REFUSED(VAE_BUNDLE, "2^40", check_small(((uint64_t)1 << 40) + 1, 20000));
    REFUSED(VAE_BUNDLE, "64 KiB", check_small(3, 65537));
}

static void test_paths(void) {
    static const char *const RIGHT[] = {"a", "a/b", "A-z_0.9/x", "-"}, *const WRONG[] = {"",     "/a",      "a/",
                                                                                         "a//b", "..",      "a/../b",
                                                                                         ".a",   "a/.b",    "a b",
                                                                                         "a\\b", "\xC3\xA4"};
    for (size_t i = 0; i < COUNT(RIGHT); i++) CHECK(is_path(RIGHT[i], strlen(RIGHT[i])));
    for (size_t i = 0; i < COUNT(WRONG); i++) CHECK(!is_path(WRONG[i], strlen(WRONG[i])));
    CHECK(is_clash("a", "A") && is_clash("a", "a/b") && is_clash("a/b", "A/c") && is_clash("a/b", "a/B"));
    CHECK(!is_clash("a", "b") && !is_clash("a/b", "a/c") && !is_clash("a", "ab") && !is_clash("a-b", "a.b"));
}

#ifndef _WIN32
/* Folders in folders, more than may be open at once: what cannot be looked into has not been checked. */
static void test_folders_that_cannot_be_read(void) {
    char root[] = "/tmp/vae-folders-XXXXXX", path[MAX_PATH_SIZE];
    struct rlimit usual, few;
    vae v = {0};
    CHECK(mkdtemp(root));
    v.place.root = v.place.location = root;
    for (int depth = 1; depth <= 40; depth++) {
        size_t length = (size_t)snprintf(path, sizeof path, "%s/", root);
        for (int i = 0; i < depth; i++) length += (size_t)snprintf(path + length, sizeof path - length, "a/");
        CHECK(!mkdir(path, 0700));
    }
    for (int is_limited = 0; is_limited < 2; is_limited++) {
        verification r = {&v, NULL, NULL, 0, ""};
        size_t folders = 0;
        CHECK(!getrlimit(RLIMIT_NOFILE, &usual));
        few = usual;
        few.rlim_cur = is_limited ? 30 : usual.rlim_cur;
        snprintf(path, sizeof path, "%s/", root);
        CHECK(!setrlimit(RLIMIT_NOFILE, &few));
        int right = check_folder(&r, path, strlen(path), &folders);
        CHECK(!setrlimit(RLIMIT_NOFILE, &usual));
        CHECK(right == !is_limited && r.has_failed == is_limited && (folders == 41) == !is_limited);
        CHECK(right || strstr(r.first, "cannot be read"));
    }
    for (int depth = 40; depth >= 0; depth--) {
        size_t length = (size_t)snprintf(path, sizeof path, "%s/", root);
        for (int i = 0; i < depth; i++) length += (size_t)snprintf(path + length, sizeof path - length, "a/");
        CHECK(!rmdir(path));
    }
}
#endif

#if defined(SEEK_HOLE) && !defined(_WIN32)
/* A file of holes claims memory that the disk has never held. */
static void test_sparse_files(void) {
    char path[] = "/tmp/vae-sparse-XXXXXX";
    bytes content = {NULL, 0};
    int file = mkstemp(path);
    CHECK(file >= 0 && !ftruncate(file, 1 << 16));
    CHECK(read_part(&USUAL, path, 0, UINT64_MAX, UINT64_MAX, &content) == VAE_OK && content.size == 1 << 16);
    free(content.data);
    content = (bytes){NULL, 0};
    CHECK(!ftruncate(file, 1 << 26));
    REFUSED(VAE_BUNDLE, "sparse", read_part(&USUAL, path, 0, UINT64_MAX, UINT64_MAX, &content));
    close(file);
    unlink(path);
}
#endif

/* Bytes between the last file and the directory belong to nothing. */
static void test_gaps_in_zip_files(const char *bundles) {
    char path[1024], gapped[64];
    bytes zip = {NULL, 0};
    snprintf(path, sizeof path, "%s/plain.zip", bundles);
    snprintf(gapped, sizeof gapped, "/tmp/vae-gap-%ld.zip", (long)getpid());
    CHECK(read_part(&USUAL, path, 0, UINT64_MAX, UINT64_MAX, &zip) == VAE_OK);
    unsigned char *end = zip.data + zip.size - 22;
    for (uint32_t gap = 0; gap < 2; gap++) {
        arena memory = {&USUAL, NULL, NULL, 0};
        place p = {0};
        uint32_t start = u32(end + 16), moved = start + gap;
        FILE *file = fopen(gapped, "wb");
        CHECK(file && fwrite(zip.data, 1, start, file) == start && fwrite("x", 1, gap, file) == gap);
        memcpy(end + 16, &moved, 4);
        CHECK(fwrite(zip.data + start, 1, zip.size - start, file) == zip.size - start && !fclose(file));
        if (gap)
            REFUSED(VAE_BUNDLE, "without a gap", open_place(&memory, gapped, &p));
        else
            CHECK(open_place(&memory, gapped, &p) == VAE_OK && p.count > 3);
        arena_release(&memory);
    }
    remove(gapped);
    free(zip.data);
}

static void test_readers(void) {
    static const char *const MET[] = {"vae-runtime>=0", "vae-runtime>=0.1", "vae-runtime>=0.1.0.0",
                                      "vae-runtime>=0.0.9"};
    static const char *const LATER[] = {"vae-runtime>=0.1.1", "vae-runtime>=0.10", "vae-runtime>=1",
                                        "vae-runtime>=999999999"};
    static const char *const WRONG[] = {"vae-runtime>=", "vae-runtime>=1.",         "vae-runtime>=1.x",
                                        "other>=1",      "vae-runtime>=1234567890", "vae-runtime>=1.1.1.1.1.1.1.1.1"};
    for (size_t i = 0; i < COUNT(MET); i++) CHECK(is_reader(MET[i], strlen(MET[i])) && !is_later(MET[i]));
    for (size_t i = 0; i < COUNT(LATER); i++) CHECK(is_reader(LATER[i], strlen(LATER[i])) && is_later(LATER[i]));
    for (size_t i = 0; i < COUNT(WRONG); i++) CHECK(!is_reader(WRONG[i], strlen(WRONG[i])));
}

static void test_memory_comes_from_the_allocator(const char *library, const char *bundles) {
    char path[1024];
    vae_options options = VAE_OPTIONS_INIT;
    vae *v;
    float x[6];
    options.onnxruntime = library;
    snprintf(path, sizeof path, "%s/mixture", bundles);
    allocations = 0;
    CHECK(vae_open(path, &options, &v) == VAE_OK && vae_sample(v, 1, NULL, x, 6) == VAE_OK && allocations);
    allocations = 0;
    for (int i = 0; i < 10; i++) CHECK(vae_sample(v, 1, NULL, x, 6) == VAE_OK);
    CHECK(!allocations);
    vae_close(v);
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    test_hashes();
    test_json();
    test_errors_are_printable();
    test_inflate();
    test_arrays_in_the_other_order();
    test_names_in_npz_files();
    test_limits_of_graphs();
    test_paths();
#if defined(SEEK_HOLE) && !defined(_WIN32)
    test_sparse_files();
#endif
#ifndef _WIN32
    test_folders_that_cannot_be_read();
#endif
    test_readers();
    test_gaps_in_zip_files(arguments[2]);
    test_memory_comes_from_the_allocator(arguments[1], arguments[2]);
    CHECK(!is_fused());
    return 0;
}
