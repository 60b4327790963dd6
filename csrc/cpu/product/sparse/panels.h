// A first layer's weight in another layout, for inputs that are mostly one value.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/team.h"

namespace fastmlp::cpu {

// Panels of a weight[n, k] with the features as rows, one after the other, each as many outputs
// wide as a tile at most, and each one thread's.
template <typename T>
class WeightPanels {
 public:
  WeightPanels() = default;
  WeightPanels(const Kernels<T>& kernels, int64_t n, int64_t k, int threads)
      : kernels_(&kernels), n_(n), k_(k) {
    const int64_t vectors = divide_up(n, kernels.width);
    // Two vectors at least, so that a tile still multiplies more than it loads.
    const int64_t owners = std::min<int64_t>(threads, divide_up(vectors, 2));
    const EvenParts shares(vectors, owners);
    for (int64_t owner = 0; owner < owners; ++owner) {
      const int64_t first = shares.spread(owner), own = shares.spread(owner + 1) - first;
      const EvenParts parts(own, divide_up(own, kernels.tuning.few_rows.vectors));
      owners_.push_back(static_cast<int64_t>(begins_.size()));
      for (int64_t part = 0; part < parts.count(); ++part)
        begins_.push_back((first + parts.begin(part)) * kernels.width);
    }
    owners_.push_back(static_cast<int64_t>(begins_.size()));
    begins_.push_back(vectors * kernels.width);
  }

  int64_t elements() const { return begins_.empty() ? 0 : begins_.back() * k_; }
  // This member's panels, and the outputs in them.
  int64_t first(Member member) const { return owners_[member.begin(owners())]; }
  int64_t last(Member member) const { return owners_[member.end(owners())]; }
  int64_t begin(int64_t panel) const { return std::min(n_, begins_[panel]); }
  int64_t columns(int64_t panel) const { return begin(panel + 1) - begin(panel); }
  int64_t width(int64_t panel) const { return begins_[panel + 1] - begins_[panel]; }
  // Where a feature's row begins in a panel.
  int64_t offset(int64_t panel, int64_t feature) const {
    return begins_[panel] * k_ + feature * width(panel);
  }

  // weight[panel's outputs, features from … from + count - 1] = the rows of a panel.
  void unpack(int64_t panel, int64_t from, int64_t count, const T* rows, T* weight) const {
    // A vector of outputs at a time, each of them a row, a page, of the weight.
    for (int64_t c = 0; c < columns(panel); c += kernels_->width) {
      kernels_->pack_transposed(count, std::min<int64_t>(kernels_->width, columns(panel) - c),
                                rows + c, width(panel), weight + (begin(panel) + c) * k_ + from, k_,
                                count);
    }
  }
  // This member's share of a whole weight.
  void unpack(Member member, const T* panels, T* weight) const {
    for (int64_t panel = first(member); panel < last(member); ++panel)
      unpack(panel, 0, k_, panels + offset(panel, 0), weight);
  }

 private:
  int64_t owners() const { return static_cast<int64_t>(owners_.size()) - 1; }

  const Kernels<T>* kernels_ = nullptr;
  int64_t n_ = 0, k_ = 0;
  std::vector<int64_t> begins_;  // first outputs, and the end of the last
  std::vector<int64_t> owners_;  // first panels of each thread, and the end of the last
};

// A weight whose panels are kept from pass to pass, and whose own memory may be older than they
// are.
template <typename T>
struct PanelWeight {
  WeightPanels<T> layout;
  T* panels = nullptr;        // memory of layout.elements()
  T* weight = nullptr;        // [n, k], contiguous
  bool is_ahead = false;      // the panels are newer than the weight itself
  bool may_be_ahead = false;  // nobody reads the weight before flush()

  // This member's share of bringing the weight up to date.
  void unpack(Member member) const { layout.unpack(member, panels, weight); }
  void flush(int threads) {
    if (!is_ahead) return;
    run_team(threads, [&](Member member) { unpack(member); });
    is_ahead = false;
  }
};

}  // namespace fastmlp::cpu
