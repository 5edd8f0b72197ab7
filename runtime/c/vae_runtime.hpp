// vae-runtime for C++17: vae_runtime.h with objects that close themselves, and errors that are thrown.
#ifndef VAE_RUNTIME_HPP
#define VAE_RUNTIME_HPP

#include "vae_runtime.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace vae_runtime {

// A pointer and a size, made of any container with data() and size(), such as std::vector and std::span.
template <typename T> class span {
  public:
    span() = default;
    span(T *data, std::size_t size) : data_(data), size_(size) {}
    template <typename Container,
              typename = std::enable_if_t<std::is_convertible_v<decltype(std::declval<Container &>().data()), T *>>>
    span(Container &&container) : data_(container.data()), size_(container.size()) {}
    T *data() const { return data_; }
    std::size_t size() const { return size_; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

// What is thrown; `what()` is one line: place: expected X, got Y; next step.
class Error : public std::runtime_error {
  public:
    Error(vae_status status, const char *message) : std::runtime_error(message), status(status) {}
    vae_status status;
};
// A bundle is missing, damaged, altered, or of a format that this version does not read.
struct BundleError : Error {
    using Error::Error;
};
// An argument is not as expected.
struct InputError : Error {
    using Error::Error;
};
// The device or ONNX Runtime itself is unavailable.
struct DeviceError : Error {
    using Error::Error;
};

inline void require(vae_status status) {
    switch (status) {
    case VAE_OK: return;
    case VAE_BUNDLE: throw BundleError(status, vae_last_error());
    case VAE_INPUT: throw InputError(status, vae_last_error());
    case VAE_DEVICE: throw DeviceError(status, vae_last_error());
    default: throw Error(status, vae_last_error());
    }
}

struct Options {
    std::string device = "cpu";
    int threads = 1;
    std::string variant, digest, onnxruntime; // empty ones are left out
};

// The shape of one row of a latent; of several latents, by name.
inline vae_shape shape(const std::vector<std::size_t> &sizes, const char *name = nullptr) {
    vae_shape result{name, sizes.size(), {}};
    if (sizes.size() > VAE_AXES) throw InputError(VAE_INPUT, "shape: expected at most 8 axes; give fewer");
    for (std::size_t i = 0; i < sizes.size(); i++) result.sizes[i] = sizes[i];
    return result;
}

// Numbers by the name of a latent or a condition. The name and the numbers are the caller's, and stay alive.
inline vae_array array(span<const float> numbers, const char *name = nullptr, const vae_shape &row = {}) {
    vae_array result{name, numbers.data(), nullptr, nullptr, numbers.size(), row.rank, {}};
    std::copy(std::begin(row.sizes), std::end(row.sizes), result.sizes);
    return result;
}
inline vae_array integers(span<const std::int64_t> numbers, const char *name = nullptr, const vae_shape &row = {}) {
    vae_array result{name, nullptr, numbers.data(), nullptr, numbers.size(), row.rank, {}};
    std::copy(std::begin(row.sizes), std::end(row.sizes), result.sizes);
    return result;
}
// A condition's class for every row.
inline vae_array class_named(const char *name, const char *class_name) {
    return vae_array{name, nullptr, nullptr, class_name, 0, 0, {}};
}

struct Draw {
    std::uint64_t seed = 0, start = 0;
    double temperature = 1, truncation = 0; // a truncation of 0 is none
    std::vector<vae_array> conditions = {};
    std::vector<vae_shape> shapes = {};
    std::size_t batch = 0;
    bool sampled = false;

    vae_draw get() const {
        return vae_draw{seed,
                        start,
                        temperature == 0 ? VAE_COLD : temperature,
                        truncation,
                        conditions.data(),
                        conditions.size(),
                        shapes.data(),
                        shapes.size(),
                        batch,
                        sampled};
    }
};

class Vae;

// A stream of latents in chunks along time; one thread at a time, and not longer than its Vae.
class Stream {
  public:
    Stream(const Vae &vae, std::size_t n, const Draw &draw = {});
    Stream(Stream &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Stream &operator=(Stream &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;
    ~Stream() { vae_stream_close(handle_); }

    // Observations for each latent along time.
    std::size_t hop() const { return vae_stream_hop(handle_); }
    void decode(const vae_array &z, span<float> x) { require(vae_stream_decode(handle_, &z, x.data(), x.size())); }

  private:
    vae_stream *handle_ = nullptr;
};

// An opened bundle. Threads may share it.
class Vae {
  public:
    explicit Vae(const std::string &path, const Options &o = {}) {
        vae_options options = VAE_OPTIONS_INIT;
        options.device = o.device.c_str();
        options.threads = o.threads;
        options.variant = o.variant.empty() ? nullptr : o.variant.c_str();
        options.digest = o.digest.empty() ? nullptr : o.digest.c_str();
        options.onnxruntime = o.onnxruntime.empty() ? nullptr : o.onnxruntime.c_str();
        require(vae_open(path.c_str(), &options, &handle_));
    }
    Vae(Vae &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
    Vae &operator=(Vae &&other) noexcept {
        std::swap(handle_, other.handle_);
        return *this;
    }
    Vae(const Vae &) = delete;
    Vae &operator=(const Vae &) = delete;
    ~Vae() { vae_close(handle_); }

    const vae_description &info() const {
        if (!handle_) throw InputError(VAE_INPUT, "vae: expected an opened bundle, got one that was moved; open it");
        return *vae_info(handle_);
    }
    // For functions of vae_runtime.h.
    ::vae *handle() const { return handle_; }

    void sample(std::size_t n, const Draw &draw, span<float> x) const {
        vae_draw d = draw.get();
        require(vae_sample(handle_, n, &d, x.data(), x.size()));
    }
    std::vector<float> sample(std::size_t n, const Draw &draw = {}) const {
        std::vector<float> x(n * (draw.shapes.empty() ? info().output.count : count(decoded_shape(draw.shapes))));
        sample(n, draw, x);
        return x;
    }
    void prior(std::size_t n, const Draw &draw, span<float> z, const char *latent = nullptr) const {
        vae_draw d = draw.get();
        require(vae_prior(handle_, latent, n, &d, z.data(), z.size()));
    }
    void decode(std::size_t n, const std::vector<vae_array> &latents, span<float> x, const Draw &draw = {}) const {
        vae_draw d = draw.get();
        require(vae_decode(handle_, n, latents.data(), latents.size(), &d, x.data(), x.size()));
    }
    void encode(std::size_t n, const vae_array &x, const std::vector<vae_posterior> &posteriors,
                const Draw &draw = {}) const {
        vae_draw d = draw.get();
        require(vae_encode(handle_, n, &x, &d, posteriors.data(), posteriors.size()));
    }
    void reconstruct(std::size_t n, const vae_array &x, span<float> out, const Draw &draw = {}) const {
        vae_draw d = draw.get();
        require(vae_reconstruct(handle_, n, &x, &d, out.data(), out.size()));
    }
    vae_shape decoded_shape(const std::vector<vae_shape> &latents) const {
        vae_shape x{};
        require(vae_decoded_shape(handle_, latents.data(), latents.size(), &x));
        return x;
    }
    vae_shape encoded_shape(const vae_shape &x, const char *latent = nullptr) const {
        vae_shape z{};
        require(vae_encoded_shape(handle_, &x, latent, &z));
        return z;
    }

    // Whether every check holds; `each` receives what was checked, whether it passed (-1: not checked), and how.
    using Check = std::function<void(const char *, int, const char *)>;
    bool verify(const Check &each = nullptr) const {
        struct Calls {
            const Check &each;
            std::exception_ptr thrown;
        } calls{each, nullptr};
        // C must not be left by an exception: the first is kept, and thrown at the end.
        auto call = [](void *context, const char *what, int passed, const char *detail) {
            auto &to = *static_cast<Calls *>(context);
            try {
                if (to.each && !to.thrown) to.each(what, passed, detail);
            } catch (...) {
                to.thrown = std::current_exception();
            }
        };
        vae_status status = vae_verify(handle_, call, &calls);
        if (calls.thrown) std::rethrow_exception(calls.thrown);
        if (status != VAE_OK && status != VAE_BUNDLE) require(status);
        return status == VAE_OK;
    }

    // The numbers of a row of this shape.
    static std::size_t count(const vae_shape &s) {
        std::size_t result = 1;
        for (std::size_t i = 0; i < s.rank; i++) result *= s.sizes[i];
        return result;
    }

  private:
    ::vae *handle_ = nullptr;
};

inline Stream::Stream(const Vae &vae, std::size_t n, const Draw &draw) {
    vae_draw d = draw.get();
    require(vae_stream_open(vae.handle(), n, &d, &handle_));
}

} // namespace vae_runtime
#endif
