/* Fuzz what reads bundles; FUZZ names the target. Inputs are files of bundles: fuzz_manifest CORPUS. */
#include "../vae_runtime.c"

static const vae_allocator USUAL = {NULL, NULL, NULL};

/* A manifest. */
static void fuzz_manifest(const uint8_t *data, size_t size) {
    arena memory = {&USUAL, NULL, NULL, 0};
    manifest m = {0};
    read_manifest("manifest.json", &memory, (bytes){(unsigned char *)data, size}, &m);
    arena_release(&memory);
}

/* A .zip file, and the content of each file in it. */
static void fuzz_archive(const uint8_t *data, size_t size) {
    static char path[64];
    arena memory = {&USUAL, NULL, NULL, 0};
    place p = {0};
    if (!*path) snprintf(path, sizeof path, "/tmp/vae-fuzz-%ld.zip", (long)getpid());
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, data, size) != (ssize_t)size) abort();
    close(file);
    if (open_place(&memory, path, &p) == VAE_OK)
        for (size_t i = 0; i < p.count; i++) {
            bytes content = {NULL, 0};
            read_file(&USUAL, &p, p.members[i].name, 1 << 20, &content);
            give(&USUAL, content.data);
        }
    arena_release(&memory);
}

/* Golden vectors, and the parameters of a mixture. */
static void fuzz_golden(const uint8_t *data, size_t size) {
    static const struct {
        const char *name, *dtype;
        size_t rank, sizes[4];
    } ARRAYS[] = {
        {"x", "<f4", 2, {4, 6}},           {"decoder/fp32/x", "<f4", 2, {4, 6}}, {"encoder/fp32/mu", "<f4", 2, {4, 3}},
        {"z", "<i8", 2, {4, 4}},           {"z/weights", "<f8", 1, {3}},         {"z/means", "<f8", 2, {3, 3}},
        {"z/factors", "<f8", 3, {3, 3, 3}}};
    for (size_t i = 0; i < COUNT(ARRAYS); i++) {
        void *array = NULL;
        read_array(&USUAL, "golden.npz", (bytes){(unsigned char *)data, size}, ARRAYS[i].name, ARRAYS[i].dtype,
                   ARRAYS[i].rank, ARRAYS[i].sizes, &array);
        give(&USUAL, array);
    }
    unsigned char out[4096];
    inflate(data, size, out, sizeof out);
}

/* A graph, with and without a file of weights. */
static void fuzz_graph(const uint8_t *data, size_t size) {
    check_model(&USUAL, "model.onnx", (bytes){(unsigned char *)data, size}, NULL, 0);
    check_model(&USUAL, "model.onnx", (bytes){(unsigned char *)data, size}, "model.onnx.data", 1000);
}

/* SHA256SUMS. */
static void fuzz_sums(const uint8_t *data, size_t size) {
    arena memory = {&USUAL, NULL, NULL, 0};
    bytes content = {malloc(size + 1), size};
    sum *sums;
    size_t count;
    if (!content.data) abort();
    memcpy(content.data, data, size);
    if (read_sums(&memory, "bundle", content, &sums, &count) == VAE_OK)
        for (size_t i = 0; i < count; i++)
            if (!find_sum(sums, count, sums[i].path)) abort();
    free(content.data);
    arena_release(&memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    void (*const targets[])(const uint8_t *, size_t) = {fuzz_manifest, fuzz_archive, fuzz_golden, fuzz_graph,
                                                        fuzz_sums};
    (void)targets;
    FUZZ(data, size);
    return 0;
}
