#include "cpu/pass/network.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "cpu/isa/isa.h"
#include "cpu/product/product.h"
#include "cpu/product/sparse/sparse_input.h"
#include "cpu/team.h"
#include "cpu/pass/update.h"

namespace fastmlp::cpu {
namespace {

// A product's multiplications and what it costs beside them, counted in them: reading a and b, and
// writing c.
double cost(int64_t m, int64_t n, int64_t k) {
  const double rows = static_cast<double>(m), columns = static_cast<double>(n),
               depth = static_cast<double>(k);
  return rows * columns * depth + (rows + columns) * depth + 4 * rows * columns;
}

// A second thread costs a few microseconds to wake and to wait for: it is worth that from about so
// much work a thread on.
constexpr double kCostPerThread = 200e3;

int team_size(double cost, int max_threads) {
  return static_cast<int>(std::clamp(cost / kCostPerThread, 1.0, static_cast<double>(max_threads)));
}

// A buffer for all members of the team and one of its own for each, of what the largest of all
// products needs.
template <typename T>
class Buffers {
 public:
  void add(const Product<T>& product) {
    add(product.buffer_elements());
    shared_ = std::max(shared_, aligned<T>(product.shared_elements()));
  }
  void add(int64_t elements) { need_ = std::max(need_, aligned<T>(elements)); }
  int64_t elements(int threads) const { return shared_ + need_ * threads; }
  void place(T* workspace) { begin_ = workspace; }
  T* of(Member member) const { return begin_ + shared_ + member.index * need_; }
  T* shared() const { return begin_; }

 private:
  int64_t need_ = 0, shared_ = 0;
  T* begin_ = nullptr;
};

}  // namespace

template <typename T>
struct ForwardPass<T>::State {
  const Forward<T> problem;
  const Kernels<T>& kernels = active_kernels<T>();
  std::vector<Product<T>> products;
  std::vector<T*> sums, activated, outputs;  // of each layer: the problem's own, or scratch
  SparseInput<T> sparse;        // of the first layer, in place of its product where that pays
  WeightPanels<T> kept_panels;  // of problem.kept, where this input is not sparse
  Buffers<T> buffers;
  int64_t scratch = 0;  // elements of one of the two buffers for outputs that nobody keeps
  int threads = 1;

  State(const Forward<T>& p, int max_threads) : problem(p) {
    double work = 0;
    for (const auto& layer : problem.layers) {
      work += cost(problem.batch, layer.out_features, layer.in_features);
      if (!layer.output)
        scratch = std::max(scratch, aligned<T>(problem.batch * layer.out_features));
    }
    threads = team_size(work, max_threads);
    const Layer<T>& layer = problem.layers[0];
    sparse = SparseInput<T>(kernels, problem.batch, layer.out_features, layer.in_features,
                            Matrix<T>{problem.input, problem.input_stride, 1}, max_threads);
    if (!sparse.likely() && problem.kept && problem.kept->newer)
      kept_panels = WeightPanels<T>(kernels, layer.out_features, layer.in_features, max_threads);
    buffers.add(sparse.forward_elements());
    products.reserve(problem.layers.size());
    int64_t stride = problem.input_stride;
    for (const Layer<T>& l : problem.layers) {
      products.emplace_back(kernels, problem.batch, l.out_features, l.in_features,
                            Matrix<T>{nullptr, stride, 1}, Matrix<T>{l.weight, 1, l.weight_stride});
      buffers.add(products.back());
      stride = l.out_features;
    }
  }

  void place(T* workspace) {
    const T* input = problem.input;
    for (size_t l = 0; l < problem.layers.size(); ++l) {
      const Layer<T>& layer = problem.layers[l];
      outputs.push_back(layer.output ? layer.output : workspace + (l % 2) * scratch);
      activated.push_back(layer.activated ? layer.activated : outputs.back());
      sums.push_back(layer.sums ? layer.sums : activated.back());
      products[l].place(input, sums.back());
      input = outputs.back();
    }
    buffers.place(workspace + 2 * scratch);
    if (sparse.likely()) sparse.place(workspace + 2 * scratch + buffers.elements(threads));
  }

  int64_t workspace_elements() const {
    return 2 * scratch + buffers.elements(threads) + sparse.shared_elements();
  }

  bool uses_sparse() const { return sparse.likely() && sparse.forward_pays(); }

  void work(Member member) {
    if (sparse.likely()) {
      sparse.scan(member);
      member.wait();
    }
    if (problem.kept && problem.kept->newer && !uses_sparse()) {
      const WeightPanels<T>& panels = sparse.likely() ? sparse.panels() : kept_panels;
      panels.unpack(member, problem.kept->panels, const_cast<T*>(problem.layers[0].weight));
      member.wait();
    }
    for (size_t l = 0; l < products.size(); ++l) {
      if (l > 0) member.wait();
      compute(l, member);
    }
  }

  void compute(size_t l, Member member) {
    const Layer<T>& layer = problem.layers[l];
    if (l == 0 && uses_sparse()) {
      const KeptWeight<T>* kept = problem.kept;
      sparse.forward(member, Matrix<T>{layer.weight, layer.weight_stride, 1}, layer.bias,
                     kept ? kept->panels : nullptr, kept && kept->newer, buffers.of(member),
                     sums[0],
                     [&](int64_t i, int64_t rows, int64_t j, int64_t columns, const T* bias) {
                       finish(0, rows, columns, layer.out_features, i * layer.out_features + j,
                              i * problem.input_stride + j, problem.input_stride, bias);
                     });
      return;
    }
    const T* bias = layer.bias;
    const int64_t input_stride = l > 0 ? layer.in_features : problem.input_stride;
    // A single column is handled as a row, by whole vectors, with its bias repeated.
    constexpr int64_t kRun = 64;
    T repeated[kRun];
    const bool column = layer.out_features == 1;
    if (column && bias) std::fill(repeated, repeated + kRun, *bias);
    products[l].compute(member, buffers.of(member), buffers.shared(),
                        [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
                          if (!column) {
                            finish(l, rows, columns, layer.out_features, i * layer.out_features + j,
                                   i * input_stride + j, input_stride, bias ? bias + j : nullptr);
                            return;
                          }
                          for (const int64_t end = i + rows; i < end; i += kRun) {
                            finish(l, 1, std::min(kRun, end - i), 1, i, i, 1,
                                   bias ? repeated : nullptr);
                          }
                        });
  }

  // From a piece of the sums to the output, with the piece's place in them and in the input.
  void finish(size_t l, int64_t rows, int64_t columns, int64_t stride, int64_t at, int64_t input_at,
              int64_t input_stride, const T* bias) const {
    const Layer<T>& layer = problem.layers[l];
    T* const y = activated[l] + at;
    if (layer.activation != Activation::identity || bias) {
      kernels.activate[static_cast<int>(layer.activation)](rows, columns, sums[l] + at, y, stride,
                                                           bias, layer.slope);
    }
    if (layer.is_output_activated()) return;
    const T* const input = l > 0 ? outputs[l - 1] : problem.input;
    kernels.combine(rows, columns, y, stride, layer.noise ? layer.noise + at : nullptr,
                    layer.skip ? input + input_at : nullptr, input_stride, outputs[l] + at, stride);
  }
};

template <typename T>
struct BackwardPass<T>::State {
  const Backward<T> problem;
  const Kernels<T>& kernels = active_kernels<T>();
  int64_t layers, first;  // the layers below `first` need no gradient
  std::vector<Product<T>> weight_products, input_products;  // [layer - first]
  std::vector<const T*> grad_sums;                          // dL/dz of each layer
  std::vector<int64_t> grad_sums_stride;
  const SparseInput<T>* sparse = nullptr;  // of the first layer, in place of its product
  SparseInput<T> own_sparse;               // where forward's is not at hand
  KeptWeight<T>* kept = nullptr;           // what forward has kept, where it is to be updated
  Buffers<T> buffers;
  // dz of three layers at once: one is written and one read for dx, the one above read for dW.
  static constexpr int64_t kScratches = 3;
  int64_t scratch = 0;
  // dL/dy of a layer whose input is added to y, for the layer below; of one layer at a time, as it
  // is read and written in the same place.
  T* skipped = nullptr;
  int64_t skipped_elements = 0;
  int threads = 1;

  State(const Backward<T>& p, int max_threads, const typename ForwardPass<T>::State* forward)
      : problem(p), layers(static_cast<int64_t>(p.forward.layers.size())) {
    first = 0;
    while (first < layers && !problem.grad_input && !problem.gradients[first].trains_weight() &&
           !problem.gradients[first].bias)
      ++first;
    double work = 0;
    for (int64_t l = first; l < layers; ++l) {
      const Layer<T>& layer = problem.forward.layers[l];
      const int64_t batch = problem.forward.batch;
      if (problem.gradients[l].trains_weight())
        work += cost(layer.out_features, layer.in_features, batch);
      if (needs_input_gradient(l)) work += cost(batch, layer.in_features, layer.out_features);
      scratch = std::max(scratch, aligned<T>(problem.forward.batch * layer.out_features));
      if (l + 1 < layers && keeps_skipped(l))
        skipped_elements =
            std::max(skipped_elements, aligned<T>(problem.forward.batch * layer.out_features));
    }
    threads = team_size(work, max_threads);
    const LayerGradient<T>& gradient = problem.gradients[0];
    if (forward && forward->uses_sparse() && gradient.trains_weight()) {
      sparse = &forward->sparse;
      if (!gradient.weight) kept = problem.forward.kept;
    } else if (gradient.weight && !forward) {
      const Layer<T>& layer = problem.forward.layers[0];
      own_sparse = SparseInput<T>(
          kernels, problem.forward.batch, layer.out_features, layer.in_features,
          Matrix<T>{problem.forward.input, problem.forward.input_stride, 1}, max_threads);
      if (own_sparse.likely()) sparse = &own_sparse;
    }
    if (sparse) {
      buffers.add(sparse->gradient_elements());
      // The row of db, after dz.
      scratch = std::max(scratch, aligned<T>((problem.forward.batch + 1) *
                                             problem.forward.layers[0].out_features));
    }
    weight_products.reserve(layers - first);
    input_products.reserve(layers - first);
    for (int64_t l = first; l < layers; ++l) add_products(l);
  }

  // The last layer's dL/dz is the incoming gradient itself where there is nothing to go through.
  bool given(int64_t l) const {
    const Layer<T>& layer = problem.forward.layers[l];
    return l + 1 == layers && layer.activation == Activation::identity && !layer.noise &&
           !(l == 0 && sparse);
  }

  bool keeps_skipped(int64_t l) const {
    return problem.forward.layers[l].skip && needs_input_gradient(l);
  }

  void add_products(int64_t l) {
    const auto& all = problem.forward.layers;
    const Layer<T>& layer = all[l];
    const int64_t batch = problem.forward.batch;
    const int64_t stride = given(l) ? problem.grad_output_stride : layer.out_features;
    grad_sums_stride.push_back(stride);
    const Matrix<T> input = l > 0
                                ? Matrix<T>{all[l - 1].output, all[l - 1].out_features, 1}
                                : Matrix<T>{problem.forward.input, problem.forward.input_stride, 1};
    const LayerGradient<T>& gradient = problem.gradients[l];
    weight_products.emplace_back(kernels, gradient.trains_weight() ? layer.out_features : 0,
                                 layer.in_features, batch, Matrix<T>{nullptr, 1, stride}, input);
    if (!gradient.weight) weight_products.back().add_scaled(weight_scale(l));
    input_products.emplace_back(kernels, needs_input_gradient(l) ? batch : 0, layer.in_features,
                                layer.out_features, Matrix<T>{nullptr, stride, 1},
                                Matrix<T>{layer.weight, layer.weight_stride, 1});
    buffers.add(weight_products.back());
    buffers.add(input_products.back());
  }

  bool needs_input_gradient(int64_t l) const { return l > first || problem.grad_input; }

  void place(T* workspace) {
    const auto scratch_of = [&](int64_t l) { return workspace + (l % kScratches) * scratch; };
    for (int64_t l = first; l < layers; ++l) {
      const T* dz = given(l) ? problem.grad_output : scratch_of(l);
      grad_sums.push_back(dz);
      weight_products[l - first].place(dz, weight_sum(l));
      input_products[l - first].place(dz, l > first ? scratch_of(l - 1) : problem.grad_input);
    }
    skipped = workspace + kScratches * scratch;
    buffers.place(skipped + skipped_elements);
    if (sparse == &own_sparse)
      own_sparse.place(skipped + skipped_elements + buffers.elements(threads));
  }

  int64_t workspace_elements() const {
    return kScratches * scratch + skipped_elements + buffers.elements(threads) +
           own_sparse.shared_elements();
  }

  void work(Member member) {
    if (sparse == &own_sparse) {
      own_sparse.scan(member);
      member.wait();
    }
    if (sparse) sparse->scan_features(member);
    if (derive_output(member) || sparse) member.wait();
    if (kept && kept->newer && !sparse->gradient_pays()) {
      sparse->panels().unpack(member, kept->panels, weight_sum(0));
      member.wait();
    }
    // A layer's weight may change once all members have used it for dx: one layer later.
    for (int64_t l = layers - 1; l >= first; --l) {
      if (needs_input_gradient(l)) compute_input(l, member);
      if (l + 1 < layers) compute_parameters(l + 1, member);
      if (needs_input_gradient(l)) member.wait();
    }
    compute_parameters(first, member);
  }

  const T* saved(const Layer<T>& layer) const {
    if (!saves_output(layer.activation)) return layer.sums;
    return layer.is_output_activated() ? layer.output : layer.activated;
  }

  // Whether there was anything to do.
  bool derive_output(Member member) {
    const Layer<T>& layer = problem.forward.layers[layers - 1];
    if (grad_sums.back() == problem.grad_output) return false;
    const int64_t n = layer.out_features, begin = member.begin(problem.forward.batch);
    T* dz = const_cast<T*>(grad_sums.back());  // ours: scratch
    const int64_t rows = member.end(problem.forward.batch) - begin;
    const int64_t stride = problem.grad_output_stride;
    const bool flat = stride == n;  // one long row then
    derive(layer, flat ? 1 : rows, flat ? rows * n : n, problem.grad_output + begin * stride,
           stride, begin * n, dz + begin * n);
    return true;
  }

  // dL/dz of a piece that lies `at` in the layer's output, from dL/dy of it.
  void derive(const Layer<T>& layer, int64_t rows, int64_t columns, const T* incoming,
              int64_t stride, int64_t at, T* dz) const {
    const int64_t n = layer.out_features;
    if (layer.noise) {
      kernels.combine(rows, columns, incoming, stride, layer.noise + at, nullptr, 0, dz, n);
      incoming = dz, stride = n;
    }
    if (layer.activation == Activation::identity && incoming == dz) return;
    // The identity saves nothing and reads nothing of it: its gradient is copied.
    const T* const from_forward = saved(layer) ? saved(layer) + at : incoming;
    kernels.derive[static_cast<int>(layer.activation)](rows, columns, incoming, stride,
                                                       from_forward, saved(layer) ? n : stride, dz,
                                                       n, layer.slope);
  }

  // dW = dzᵀ · x and db = the column sums of dz, and what becomes of them.
  void compute_parameters(int64_t l, Member member) {
    const LayerGradient<T>& gradient = problem.gradients[l];
    const Layer<T>& layer = problem.forward.layers[l];
    const int64_t n = layer.out_features, k = layer.in_features;
    const T* dz = grad_sums[l - first];
    const int64_t stride = grad_sums_stride[l - first];
    const auto weight_done = [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
      if (gradient.weight && gradient.weight_update)
        update(kernels, *gradient.weight_update, 1, i * k + j, rows, columns, k);
    };
    int64_t begin, end;  // the outputs whose bias is this member's
    if (l == 0 && sparse && sparse->gradient_pays()) {
      begin = sparse->begin(member), end = sparse->end(member);
      T* const sums = const_cast<T*>(dz) + problem.forward.batch * n;  // ours: scratch
      if (begin < end) sum_columns(l, begin, end, sums);
      sparse->gradient(member, Matrix<T>{dz, stride, 1}, kept ? kept->panels : nullptr,
                       kept ? weight_scale(l) : T(1), buffers.of(member),
                       kept && kept->may_wait ? nullptr : weight_sum(l),
                       [&](int64_t i, int64_t rows) { weight_done(i, rows, 0, k); });
      if (gradient.bias) std::copy(sums + begin, sums + end, gradient.bias + begin);
    } else {
      weight_products[l - first].compute(member, buffers.of(member), buffers.shared(), weight_done);
      const int64_t groups = divide_up(n, kernels.width);
      begin = member.begin(groups) * kernels.width;
      end = std::min(n, member.end(groups) * kernels.width);
      if (gradient.bias && begin < end) sum_columns(l, begin, end, gradient.bias);
    }
    if (gradient.bias_update && begin < end)
      update(kernels, *gradient.bias_update, 1, begin, 1, end - begin, n);
  }

  // db
  void sum_columns(int64_t l, int64_t begin, int64_t end, T* sums) const {
    kernels.column_sums(problem.forward.batch, end - begin, grad_sums[l - first] + begin,
                        grad_sums_stride[l - first], sums + begin);
  }

  // What dW is written to, or added to by its scale.
  T* weight_sum(int64_t l) const {
    const LayerGradient<T>& gradient = problem.gradients[l];
    return gradient.weight || !gradient.weight_update ? gradient.weight
                                                      : gradient.weight_update->parameter;
  }
  T weight_scale(int64_t l) const {
    const Update<T>* u = problem.gradients[l].weight_update;
    return u ? static_cast<T>(u->maximize ? u->lr : -u->lr) : T(1);
  }

  // dx = dz · W, which becomes the dz of the layer below in the epilogue.
  void compute_input(int64_t l, Member member) {
    const Layer<T>& layer = problem.forward.layers[l];
    const Layer<T>* const below = l > first ? &problem.forward.layers[l - 1] : nullptr;
    T* const grad = below ? const_cast<T*>(grad_sums[l - 1 - first])  // ours: scratch
                          : problem.grad_input;
    const bool keeps = below && keeps_skipped(l - 1);
    const bool given_skipped = l + 1 == layers;
    const T* const added = given_skipped ? problem.grad_output : skipped;
    const int64_t n = layer.in_features,
                  added_stride = given_skipped ? problem.grad_output_stride : n;
    input_products[l - first].compute(member, buffers.of(member), buffers.shared(),
                                      [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
                                        const int64_t at = i * n + j;
                                        T* dy = grad + at;
                                        if (layer.skip || keeps) {
                                          T* const sum = keeps ? skipped + at : dy;
                                          kernels.combine(
                                              rows, columns, dy, n, nullptr,
                                              layer.skip ? added + i * added_stride + j : nullptr,
                                              added_stride, sum, n);
                                          dy = sum;
                                        }
                                        if (below)
                                          derive(*below, rows, columns, dy, n, at, grad + at);
                                      });
  }
};

template <typename T>
ForwardPass<T>::ForwardPass(const Forward<T>& problem, int max_threads)
    : state_(new State(problem, max_threads)) {}
template <typename T>
ForwardPass<T>::~ForwardPass() = default;
template <typename T>
int64_t ForwardPass<T>::workspace_elements() const {
  return state_->workspace_elements();
}
template <typename T>
int64_t ForwardPass<T>::kept_elements() const {
  return state_->problem.kept ? state_->sparse.panels().elements() : 0;
}
template <typename T>
void ForwardPass<T>::run(T* workspace) {
  State& s = *state_;
  s.place(workspace);
  run_team(s.threads, [&s](Member member) { s.work(member); });
  if (s.problem.kept && !s.uses_sparse()) s.problem.kept->newer = false;
}

template <typename T>
BackwardPass<T>::BackwardPass(const Backward<T>& problem, int max_threads,
                              const ForwardPass<T>* forward)
    : state_(new State(problem, max_threads, forward ? forward->state_.get() : nullptr)) {}
template <typename T>
BackwardPass<T>::~BackwardPass() = default;
template <typename T>
int64_t BackwardPass<T>::workspace_elements() const {
  return state_->workspace_elements();
}
template <typename T>
void BackwardPass<T>::run(T* workspace) {
  State& s = *state_;
  if (s.first == s.layers) return;
  s.place(workspace);
  run_team(s.threads, [&s](Member member) { s.work(member); });
  if (s.kept) s.kept->newer = s.kept->may_wait && s.sparse->gradient_pays();
}

template <typename T>
void flush(KeptWeight<T>& kept, const Layer<T>& layer, T* weight, int max_threads) {
  if (!kept.newer) return;
  const WeightPanels<T> panels(active_kernels<T>(), layer.out_features, layer.in_features,
                               max_threads);
  run_team(max_threads, [&](Member member) { panels.unpack(member, kept.panels, weight); });
  kept.newer = false;
}

template <typename T>
double fma_peak(double seconds, int threads) {
  const Kernels<T>& kernels = active_kernels<T>();
  constexpr int64_t kSteps = 20000;
  std::atomic<int64_t> rounds{0};
  std::atomic<bool> sink{false};
  const auto now = [] { return std::chrono::steady_clock::now(); };
  const auto start = now();
  run_team(threads, [&](Member) {
    while (std::chrono::duration<double>(now() - start).count() < seconds) {
      sink = kernels.multiply_add(kSteps) > 0;
      ++rounds;
    }
  });
  const double elapsed = std::chrono::duration<double>(now() - start).count();
  return 2.0 * kPeakChains * kernels.width * kSteps * static_cast<double>(rounds) / elapsed * 1e-9;
}

template void flush(KeptWeight<float>&, const Layer<float>&, float*, int);
template void flush(KeptWeight<double>&, const Layer<double>&, double*, int);
template double fma_peak<float>(double, int);
template double fma_peak<double>(double, int);
template class ForwardPass<float>;
template class ForwardPass<double>;
template class BackwardPass<float>;
template class BackwardPass<double>;

}  // namespace fastmlp::cpu
