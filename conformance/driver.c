/* The driver of vae-runtime for C: `driver ONNXRUNTIME REQUESTS`, where the first is the path of ONNX Runtime's shared
 * library; README.md has the protocol. All answers come from the functions of vae_runtime.h. The source is included for
 * its JSON parser, which reads the requests. */
#include "../runtime/c/vae_runtime.c"

#include <inttypes.h>

static const char *library;

typedef struct {
    const char *dtype;
    size_t rank, sizes[VAE_AXES + 1], count;
    void *data;
} array;

static void *must(void *memory) {
    if (!memory) exit(3);
    return memory;
}

/* ------------------------------------------------------------------------------------------------------- requests */

static uint64_t integer(const node *request, const char *key) {
    const node *value = member_of(request, key);
    if (value && value->kind == NUMBER) return (uint64_t)value->number;
    return value ? strtoull(value->text, NULL, 10) : 0; /* strtoull takes a minus as the two's complement */
}

static double number_or(const node *request, const char *key, double otherwise) {
    const node *value = member_of(request, key);
    return value && value->kind == NUMBER ? value->number : otherwise;
}

static int digit64(char c) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(DIGITS, c) : NULL;
    return at ? (int)(at - DIGITS) : -1;
}

static array read_tensor_of(const node *tensor) {
    array a = {text_of(tensor, "dtype"), 0, {0}, 1, NULL};
    const node *shape = member_of(tensor, "shape");
    const char *text = text_of(tensor, "base64");
    for (const node *size = shape->first; size; size = size->next) a.count *= a.sizes[a.rank++] = (size_t)size->number;
    unsigned char *out = a.data = must(calloc(a.count + 4, 8));
    uint32_t bits = 0;
    for (int have = 0; *text && digit64(*text) >= 0; text++) {
        bits = bits << 6 | (uint32_t)digit64(*text);
        have += 6;
        if (have >= 8) *out++ = (unsigned char)(bits >> (have -= 8));
    }
    return a;
}

static vae_array as_array(const char *name, const array *a) {
    vae_array result = {name, NULL, NULL, NULL, a->count, a->rank ? a->rank - 1 : 0, {0}};
    memcpy(result.sizes, a->sizes + 1, sizeof result.sizes);
    if (!strcmp(a->dtype, "int64"))
        result.integers = a->data;
    else
        result.floats = a->data;
    return result;
}

/* -------------------------------------------------------------------------------------------------------- answers */

static int printed;

static void print_key(const char *name, const char *more) { printf("%s\"%s%s\": ", printed++ ? ", " : "", name, more); }

static void print_tensor(const char *prefix, const char *name, const char *dtype, size_t n, size_t rank,
                         const size_t *sizes, const void *data) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *from = data;
    size_t size = n * (strcmp(dtype, "int64") ? 4 : 8);
    print_key(prefix, name);
    printf("{\"dtype\": \"%s\", \"shape\": [%zu", dtype, n);
    for (size_t i = 0; i < rank; i++) printf(", %zu", sizes[i]), size *= sizes[i];
    printf("], \"base64\": \"");
    for (size_t i = 0; i < size; i += 3) {
        uint32_t three = (uint32_t)from[i] << 16 | (uint32_t)(i + 1 < size ? from[i + 1] : 0) << 8 |
                         (i + 2 < size ? from[i + 2] : 0);
        putchar(DIGITS[three >> 18]), putchar(DIGITS[three >> 12 & 63]);
        putchar(i + 1 < size ? DIGITS[three >> 6 & 63] : '='), putchar(i + 2 < size ? DIGITS[three & 63] : '=');
    }
    printf("\"}");
}

static void print_shape(const vae_field *f) {
    printf("[");
    for (size_t i = 0; i < f->rank; i++) printf("%s%zu", i ? ", " : "", f->sizes[i]);
    printf("]");
}

static void print_text(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') putchar('\\');
        putchar(*text);
    }
    putchar('"');
}

/* ----------------------------------------------------------------------------------------------------------- asks */

static vae_status open_of(const node *request, vae **v) {
    vae_options options = VAE_OPTIONS_INIT;
    options.onnxruntime = library;
    options.variant = text_of(request, "variant");
    return vae_open(text_of(request, "path"), &options, v);
}

static vae_draw draw_of(const node *request) {
    double temperature = number_or(request, "temperature", 1);
    return (vae_draw){.seed = integer(request, "seed"),
                      .start = integer(request, "start"),
                      .temperature = temperature == 0 ? VAE_COLD : temperature,
                      .truncation = number_or(request, "truncation", 0)};
}

static vae_status ask_noise(const node *request) {
    const char *ask = text_of(request, "ask");
    size_t n = (size_t)integer(request, "n"), rank = 0, size = 1, sizes[VAE_AXES];
    for (const node *each = member_of(request, "shape")->first; each; each = each->next)
        size *= sizes[rank++] = (size_t)each->number;
    uint64_t seed = integer(request, "seed"), start = integer(request, "start");
    uint32_t stream = (uint32_t)integer(request, "stream");
    void *out = must(calloc(n * size, 4));
    vae_status status = !strcmp(ask, "words") ? vae_noise_words(seed, start, n, size, stream, out)
                        : !strcmp(ask, "uniform")
                            ? vae_noise_uniform(seed, start, n, size, stream, out)
                            : vae_noise_normal(seed, start, n, size, stream, number_or(request, "truncation", 0), out);
    if (!status) print_tensor("", "values", strcmp(ask, "words") ? "float32" : "uint32", n, rank, sizes, out);
    free(out);
    return status;
}

static vae_status ask_reparameterize(const node *request) {
    array mean = read_tensor_of(member_of(request, "mean")), std = read_tensor_of(member_of(request, "std"));
    vae_draw draw = draw_of(request);
    vae_status status = vae_reparameterize(mean.sizes[0], mean.count / mean.sizes[0], mean.data, std.data,
                                           (size_t)integer(request, "latent"), &draw, mean.data);
    if (!status) print_tensor("", "values", "float32", mean.sizes[0], mean.rank - 1, mean.sizes + 1, mean.data);
    free(mean.data), free(std.data);
    return status;
}

static vae_status ask_prior(const node *request, vae *v) {
    vae_draw draw = draw_of(request);
    size_t n = (size_t)integer(request, "n");
    vae_status status = VAE_OK;
    for (size_t i = 0; !status && i < vae_info(v)->latent_count; i++) {
        const vae_field *l = &vae_info(v)->latents[i];
        float *z = must(calloc(n * l->count, sizeof *z));
        status = vae_prior(v, l->name, n, &draw, z, n * l->count);
        if (!status) print_tensor("", l->name, "float32", n, l->rank, l->sizes, z);
        free(z);
    }
    return status;
}

/* The conditions of a request, and the noise that it draws; their arrays stay until the program ends. */
static vae_draw conditions_of(const node *request, vae_array *arrays) {
    const node *conditions = member_of(request, "conditions");
    vae_draw draw = {.seed = integer(request, "seed"), .start = integer(request, "start"), .conditions = arrays};
    draw.sampled = member_of(request, "seed") != NULL;
    for (const node *each = conditions->first; each; each = each->next) {
        if (each->kind == TEXT) {
            arrays[draw.condition_count++] = (vae_array){.name = each->key, .class_name = each->text};
            continue;
        }
        array a = read_tensor_of(each);
        arrays[draw.condition_count++] = as_array(each->key, &a);
    }
    return draw;
}

static vae_status ask_decode(const node *request, vae *v) {
    vae_array conditions[64], latents[64];
    vae_shape shapes[64], x;
    vae_draw draw = conditions_of(request, conditions);
    size_t count = 0, n = 0, size;
    for (const node *each = member_of(request, "latents")->first; each; each = each->next) {
        array a = read_tensor_of(each);
        n = a.sizes[0];
        latents[count] = as_array(each->key, &a);
        shapes[count] = (vae_shape){each->key, latents[count].rank, {0}};
        memcpy(shapes[count].sizes, latents[count].sizes, sizeof shapes[count].sizes);
        count++;
    }
    vae_status status = vae_decoded_shape(v, shapes, count, &x);
    if (status) return status;
    size = n;
    for (size_t i = 0; i < x.rank; i++) size *= x.sizes[i];
    float *values = must(calloc(size + 1, sizeof *values));
    status = vae_decode(v, n, latents, count, &draw, values, size);
    if (!status) print_tensor("", "values", "float32", n, x.rank, x.sizes, values);
    free(values);
    return status;
}

/* Time is the last axis of the latents. */
static vae_status ask_decode_stream(const node *request, vae *v) {
    vae_array conditions[64];
    vae_draw draw = conditions_of(request, conditions);
    const node *named = member_of(request, "latents")->first;
    array all = read_tensor_of(named);
    size_t n = all.sizes[0], whole = all.sizes[all.rank - 1], outer = all.count / whole, start = 0, number = 0;
    size_t size = strcmp(all.dtype, "int64") ? 4 : 8;
    vae_stream *stream;
    vae_status status = vae_stream_open(v, n, &draw, &stream);
    if (status) return status;
    for (const node *each = member_of(request, "chunks")->first; !status && each; each = each->next, number++) {
        size_t length = (size_t)each->number, sizes[VAE_AXES], count = n;
        const vae_field *output = &vae_info(v)->output;
        array chunk = all;
        char key[32];
        chunk.count = outer * length, chunk.sizes[all.rank - 1] = length;
        unsigned char *z = chunk.data = must(calloc(chunk.count + 1, size));
        for (size_t i = 0; i < outer; i++)
            memcpy(z + i * length * size, (unsigned char *)all.data + (i * whole + start) * size, length * size);
        memcpy(sizes, output->sizes, sizeof sizes);
        sizes[output->rank - 1] = length * vae_stream_hop(stream);
        for (size_t i = 0; i < output->rank; i++) count *= sizes[i];
        float *x = must(calloc(count + 1, sizeof *x));
        vae_array given = as_array(named->key, &chunk);
        status = vae_stream_decode(stream, &given, x, count);
        snprintf(key, sizeof key, "%zu", number);
        if (!status) print_tensor("", key, "float32", n, output->rank, sizes, x);
        free(z), free(x);
        start += length;
    }
    vae_stream_close(stream);
    return status;
}

static vae_status ask_encode(const node *request, vae *v) {
    vae_array conditions[64];
    vae_draw draw = conditions_of(request, conditions);
    array a = read_tensor_of(member_of(request, "x"));
    vae_array x = as_array(NULL, &a);
    vae_shape given = {NULL, x.rank, {0}}, shapes[64];
    vae_posterior posteriors[64] = {{0}};
    size_t n = a.sizes[0], latents = vae_info(v)->latent_count, count = 0;
    vae_status status = VAE_OK;
    memcpy(given.sizes, x.sizes, sizeof given.sizes);
    for (size_t i = 0; !status && i < latents; i++) {
        const vae_field *l = &vae_info(v)->latents[i];
        vae_posterior *q = &posteriors[count];
        vae_shape *shape = &shapes[count];
        status = vae_encoded_shape(v, &given, l->name, shape);
        if (status == VAE_INPUT && !strcmp(l->kind, "none")) {
            status = VAE_OK; /* noise of the decoder */
            continue;
        }
        count++;
        q->latent = l->name;
        q->count = n;
        for (size_t j = 0; j < l->rank; j++) q->count *= shape->sizes[j];
        float *room = must(calloc(3 * q->count + 1, sizeof(int64_t)));
        if (!strcmp(l->kind, "normal"))
            q->mean = room, q->std = room + q->count, q->logvar = room + 2 * q->count;
        else if (!strcmp(l->kind, "codes"))
            q->codes = (int64_t *)(void *)room;
        else
            q->value = room;
    }
    if (!status) status = vae_encode(v, n, &x, &draw, posteriors, count);
    for (size_t i = 0; !status && i < count; i++) {
        const vae_posterior *q = &posteriors[i];
        const struct {
            const char *name;
            const void *data;
        } PARTS[] = {
            {"mean", q->mean}, {"std", q->std}, {"logvar", q->logvar}, {"values", q->value}, {"values", q->codes}};
        char prefix[128] = "";
        if (latents > 1) snprintf(prefix, sizeof prefix, "%s/", q->latent);
        for (size_t k = 0; k < COUNT(PARTS); k++)
            if (PARTS[k].data)
                print_tensor(prefix, PARTS[k].name, q->codes ? "int64" : "float32", n, shapes[i].rank, shapes[i].sizes,
                             PARTS[k].data);
    }
    return status;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static vae_status ask_load(const vae_description *d) {
    const char *variants[128];
    memcpy(variants, d->variants, d->variant_count * sizeof *variants);
    qsort(variants, d->variant_count, sizeof *variants, compare_names);
    printf("\"name\": ");
    print_text(d->name);
    printf(", \"latents\": {");
    for (size_t i = 0; i < d->latent_count; i++) {
        printf("%s\"%s\": ", i ? ", " : "", d->latents[i].name);
        print_shape(&d->latents[i]);
    }
    printf("}, \"observation\": ");
    print_shape(&d->observation);
    printf(", \"variants\": [");
    for (size_t i = 0; i < d->variant_count; i++) printf("%s\"%s\"", i ? ", " : "", variants[i]);
    printf("]");
    return VAE_OK;
}

/* Answer a request of a bundle; golden vectors that do not hold are an answer, all else that fails is a refusal. */
static vae_status ask_bundle(const node *request) {
    const char *ask = text_of(request, "ask");
    vae *v;
    vae_status status = open_of(request, &v);
    if (status) return status;
    if (!strcmp(ask, "prior")) status = ask_prior(request, v);
    if (!strcmp(ask, "decode")) status = ask_decode(request, v);
    if (!strcmp(ask, "decode_stream")) status = ask_decode_stream(request, v);
    if (!strcmp(ask, "encode")) status = ask_encode(request, v);
    if (!strcmp(ask, "verify")) printf("\"passed\": %s", vae_verify(v, NULL, NULL) ? "false" : "true");
    if (!strcmp(ask, "load")) status = ask_load(vae_info(v));
    vae_close(v);
    return status;
}

static void answer(const node *request) {
    static const char *const KINDS[] = {"", "bundle", "input", "device", "failed"};
    const char *ask = text_of(request, "ask");
    printf("{\"id\": ");
    print_text(text_of(request, "id"));
    if (!has_word(" words uniform normal reparameterize prior decode decode_stream encode verify load ", ask,
                  strlen(ask))) {
        printf(", \"unsupported\": \"unknown request %s\"}\n", ask);
        return;
    }
    printed = 0;
    printf(", \"answer\": {");
    vae_status status = has_word(" words uniform normal ", ask, strlen(ask)) ? ask_noise(request)
                        : !strcmp(ask, "reparameterize")                     ? ask_reparameterize(request)
                                                                             : ask_bundle(request);
    printf("}");
    if (status) {
        printf(", \"refused\": \"%s\", \"why\": ", KINDS[status]);
        print_text(vae_last_error());
    }
    printf("}\n");
}

int main(int count, char **arguments) {
    FILE *file = count == 3 ? fopen(arguments[2], "rb") : NULL;
    if (!file) return fprintf(stderr, "usage: driver ONNXRUNTIME REQUESTS\n"), 2;
    library = arguments[1];
    size_t room = (size_t)1 << 24, size;
    char *content = must(malloc(room));
    while ((size = fread(content, 1, room, file)) == room)
        room *= 2, content = must(realloc(content, room)), rewind(file);
    fclose(file);
    for (char *line = content, *end; line < content + size; line = end + 1) {
        static const vae_allocator USUAL = {NULL, NULL, NULL};
        arena memory = {&USUAL, NULL, NULL, 0};
        end = memchr(line, '\n', (size_t)(content + size - line));
        if (!end) break;
        const node *request = parse_json(&memory, (const unsigned char *)line, (size_t)(end - line), "request");
        if (!request) return fprintf(stderr, "%s\n", vae_last_error()), 1;
        answer(request);
        arena_release(&memory);
    }
    free(content);
    return 0;
}
