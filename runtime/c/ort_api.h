/* The part of ONNX Runtime's C API that vae_runtime.c calls. The API is a table of functions whose order is fixed: new
 * versions append to it. The numbers are the places in the table of version 18, ONNX Runtime 1.18; the tests call each
 * on the oldest and the newest version. No package ships the original header beside the library. */
#ifndef VAE_ORT_API_H
#define VAE_ORT_API_H

#include <stddef.h>
#include <stdint.h>

#define ORT_VERSION_OF_TABLE 18

#ifdef _WIN32
#include <wchar.h>
#define ORT_CALLED __stdcall
typedef wchar_t ort_char;
#else
#define ORT_CALLED
typedef char ort_char;
#endif

typedef struct ort_status ort_status;
typedef struct ort_env ort_env;
typedef struct ort_session ort_session;
typedef struct ort_options ort_options;
typedef struct ort_value ort_value;
typedef struct ort_memory ort_memory;
typedef struct ort_allocator ort_allocator;
typedef struct ort_type ort_type;
typedef struct ort_shape ort_shape;
typedef struct ort_cuda ort_cuda;
typedef struct ort_run_options ort_run_options;

/* Any function of the table; each is called through its own type, below. */
typedef void (*ort_function)(void);

typedef struct {
    const ort_function *(ORT_CALLED *get_api)(uint32_t version);
    const char *(ORT_CALLED *get_version)(void);
} ort_base;

enum { ORT_FLOAT = 1, ORT_INT64 = 7 };
enum { ORT_LOG_FATAL = 4 };

/* ORT_FUNCTION(number, name, result, arguments) */
#define ORT_FUNCTIONS \
    ORT_FUNCTION(2, error_message, const char *, (const ort_status *)) \
    ORT_FUNCTION(3, create_env, ort_status *, (int level, const char *name, ort_env **)) \
    ORT_FUNCTION(8, create_session, ort_status *, \
                 (const ort_env *, const void *, size_t, const ort_options *, ort_session **)) \
    ORT_FUNCTION(9, run, ort_status *, \
                 (ort_session *, const ort_run_options *, const char *const *, const ort_value *const *, size_t, \
                  const char *const *, size_t, ort_value **)) \
    ORT_FUNCTION(10, create_options, ort_status *, (ort_options **)) \
    ORT_FUNCTION(19, disable_arena, ort_status *, (ort_options *)) \
    ORT_FUNCTION(22, set_log_level, ort_status *, (ort_options *, int)) \
    ORT_FUNCTION(24, set_intra_threads, ort_status *, (ort_options *, int)) \
    ORT_FUNCTION(25, set_inter_threads, ort_status *, (ort_options *, int)) \
    ORT_FUNCTION(30, input_count, ort_status *, (const ort_session *, size_t *)) \
    ORT_FUNCTION(31, output_count, ort_status *, (const ort_session *, size_t *)) \
    ORT_FUNCTION(33, input_type, ort_status *, (const ort_session *, size_t, ort_type **)) \
    ORT_FUNCTION(34, output_type, ort_status *, (const ort_session *, size_t, ort_type **)) \
    ORT_FUNCTION(36, input_name, ort_status *, (const ort_session *, size_t, ort_allocator *, char **)) \
    ORT_FUNCTION(37, output_name, ort_status *, (const ort_session *, size_t, ort_allocator *, char **)) \
    ORT_FUNCTION(49, create_tensor, ort_status *, \
                 (const ort_memory *, void *, size_t, const int64_t *, size_t, int type, ort_value **)) \
    ORT_FUNCTION(51, tensor_data, ort_status *, (ort_value *, void **)) \
    ORT_FUNCTION(55, tensor_type, ort_status *, (const ort_type *, const ort_shape **)) \
    ORT_FUNCTION(60, element_type, ort_status *, (const ort_shape *, int *)) \
    ORT_FUNCTION(61, axis_count, ort_status *, (const ort_shape *, size_t *)) \
    ORT_FUNCTION(62, axis_sizes, ort_status *, (const ort_shape *, int64_t *, size_t)) \
    ORT_FUNCTION(65, value_shape, ort_status *, (const ort_value *, ort_shape **)) \
    ORT_FUNCTION(69, create_cpu_memory, ort_status *, (int allocator, int memory, ort_memory **)) \
    ORT_FUNCTION(76, release_memory_of, ort_status *, (ort_allocator *, void *)) \
    ORT_FUNCTION(78, default_allocator, ort_status *, (ort_allocator **)) \
    ORT_FUNCTION(92, release_env, void, (ort_env *)) \
    ORT_FUNCTION(93, release_status, void, (ort_status *)) \
    ORT_FUNCTION(94, release_memory, void, (ort_memory *)) \
    ORT_FUNCTION(95, release_session, void, (ort_session *)) \
    ORT_FUNCTION(96, release_value, void, (ort_value *)) \
    ORT_FUNCTION(98, release_type, void, (ort_type *)) \
    ORT_FUNCTION(99, release_shape, void, (ort_shape *)) \
    ORT_FUNCTION(100, release_options, void, (ort_options *)) \
    ORT_FUNCTION(125, available_providers, ort_status *, (char ***, int *)) \
    ORT_FUNCTION(126, release_providers, ort_status *, (char **, int)) \
    ORT_FUNCTION(130, add_config, ort_status *, (ort_options *, const char *, const char *)) \
    ORT_FUNCTION(204, add_cuda, ort_status *, (ort_options *, const ort_cuda *)) \
    ORT_FUNCTION(205, create_cuda, ort_status *, (ort_cuda **)) \
    ORT_FUNCTION(206, update_cuda, ort_status *, (ort_cuda *, const char *const *, const char *const *, size_t)) \
    ORT_FUNCTION(208, release_cuda, void, (ort_cuda *)) \
    ORT_FUNCTION(216, add_provider, ort_status *, \
                 (ort_options *, const char *, const char *const *, const char *const *, size_t)) \
    ORT_FUNCTION(279, add_data, ort_status *, \
                 (ort_options *, const ort_char *const *, char *const *, const size_t *, size_t))

/* The functions by name, each of its own type, taken from the table once. */
typedef struct {
#define ORT_FUNCTION(number, name, result, arguments) result(ORT_CALLED *name) arguments;
    ORT_FUNCTIONS
#undef ORT_FUNCTION
} ort_api;

static inline void ort_read_table(const ort_function *table, ort_api *api) {
#define ORT_FUNCTION(number, name, result, arguments) api->name = (result(ORT_CALLED *) arguments)table[number];
    ORT_FUNCTIONS
#undef ORT_FUNCTION
}
#endif
