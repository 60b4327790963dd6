#include "images/cpu_augment.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/isa/isa.h"
#include "cpu/isa/target.h"
#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/record.h"
#include "cpu/team.h"
#include "images/resample.h"

namespace fastmlp::cpu {
namespace {

#include "images/threefry-inl.h"

// A member's scratch.
class Workspace {
 public:
  Workspace(const Kernels<float>& kernels, const Images& images, const Elastic& elastic)
      : framed_((images.height + kFrame) * (images.width + kFrame)),
        pixels_(images.height * images.width + kernels.width),
        bytes_(framed_),
        pairs_(framed_),
        words_(framed_),
        wide_(pixels_) {
    if (!elastic.rows) return;
    constexpr int64_t kRun = 4 * kNoiseRun;
    noise_.resize(divide_up(2 * elastic.row_rank * elastic.column_rank, kRun) * kRun);
    half_.resize(images.height * 2 * elastic.column_rank);
    shifts_.resize(2 * pixels_);
  }

  Neighbours neighbours() { return {bytes_.data(), pairs_.data(), words_.data()}; }
  uint32_t* wide() { return wide_.data(); }
  std::vector<float>& noise() { return noise_; }
  std::vector<float>& half() { return half_; }
  float* shifts_x() { return shifts_.data(); }
  float* shifts_y() { return shifts_.data() + pixels_; }

 private:
  int64_t framed_, pixels_;
  std::vector<uint8_t> bytes_;
  std::vector<uint16_t> pairs_;
  std::vector<uint32_t> words_, wide_;
  std::vector<float> noise_, half_, shifts_;
};

// Images are shared out whole; each(image, workspace) gives where its pixels come from.
template <typename Each>
void resample_each(const Images& images, const Elastic& elastic, int max_threads,
                   const Each& each) {
  const Kernels<float>& kernels = active_kernels<float>();
  const int64_t size = images.height * images.width;
  const int threads = static_cast<int>(
      std::clamp<int64_t>(images.count * size / kernels.tuning.pixels_per_thread, 1, max_threads));
  if (images.count > 0)
    record_kernel<float>("resample", kernels.isa, static_cast<int>(images.height),
                         static_cast<int>(images.width));
  std::vector<Workspace> workspaces;
  for (int i = 0; i < threads; ++i) workspaces.emplace_back(kernels, images, elastic);
  run_team(threads, [&](const Member& member) {
    Workspace& workspace = workspaces[member.index];
    const Neighbours neighbours = workspace.neighbours();
    for (int64_t i = member.begin(images.count); i < member.end(images.count); ++i) {
      const uint8_t* from = images.from + i * size;
      kernels.pack_neighbours(images.height, images.width, from, neighbours);
      const auto [affine, shifts] = each(kernels, i, from, workspace);
      kernels.resample(images.height, images.width, affine, shifts, neighbours.words,
                       workspace.wide(), images.to + i * size);
    }
  });
}

struct Source {
  Affine affine;
  Shifts shifts;
};

// Both in pixels; an image no side of which exceeds kMostPixels is far away where these are cut.
int64_t place(double value) {
  return static_cast<int64_t>(std::floor(std::clamp(value, -0x1p28, 0x1p28) * 0x1p32 + 0.5));
}
int64_t step(double value) {
  return static_cast<int64_t>(std::floor(std::clamp(value, -0x1p16, 0x1p16) * 0x1p32 + 0.5));
}

// (x, y) of the result is at (ax · x + bx · y + cx, ay · x + by · y + cy).
Affine fixed_point(const Images& images, double ax, double bx, double cx, double ay, double by,
                   double cy) {
  const auto right = [&](double value) {
    // A whole row, and a vector beyond it, is no longer than 2^29.
    const double most = 0x1p29 / static_cast<double>(images.width + 32);
    return static_cast<int32_t>(
        std::floor(std::clamp(value * (1 << kFractionBits), -most, most - 1) + 0.5));
  };
  return {place(cx), step(bx), place(cy), step(by), right(ax), right(ay)};
}

// c[rows, n] = a · b over a depth of k, contiguous but for a's rows. The tiles of Product, which is
// for large matrices: of an image's, planning would take longer than computing.
void multiply(const Kernels<float>& kernels, int64_t rows, int64_t k, int64_t n, const float* a,
              int64_t a_stride, const float* b, float* c) {
  const EvenParts tiles(rows, divide_up(rows, kernels.tuning.many_rows.rows));
  const int64_t columns = kernels.tuning.many_rows.vectors * kernels.width;
  for (int64_t j = 0; j < n; j += columns) {
    const int64_t part = std::min(columns, n - j);
    const int64_t vectors = divide_up(part, kernels.width);
    for (int64_t tile = 0; tile < tiles.count(); ++tile) {
      const int64_t begin = tiles.begin(tile), end = tiles.begin(tile + 1);
      kernels.gemm[end - begin][vectors](1, 0, k, nullptr, a + begin * a_stride, a_stride, 1, b + j,
                                         n, c + begin * n + j, n, part, false, 1);
    }
  }
}

Shifts displacements(const Kernels<float>& kernels, const Images& images,
                     const Distortion& distortion, int64_t image, Workspace& workspace) {
  const Elastic& elastic = distortion.elastic;
  const int64_t both = 2 * elastic.column_rank;  // x beside y
  std::vector<float>& noise = workspace.noise();
  std::vector<float>& half = workspace.half();
  kernels.noise(distortion.key, image, elastic.row_rank * both, noise.data());
  multiply(kernels, images.height, elastic.row_rank, both, elastic.rows, elastic.row_rank,
           noise.data(), half.data());
  // Rounded, by way of positive numbers. The product is exact: a multiply-add gives the same.
  constexpr float share = kMostHalf * 0x1p-24f, lift = kMostHalf + 0.5f;
  for (float& value : half)
    value = static_cast<float>(static_cast<int32_t>(value * share + lift) - kMostHalf);
  multiply(kernels, images.height, elastic.column_rank, images.width, half.data(), both,
           elastic.columns, workspace.shifts_x());
  multiply(kernels, images.height, elastic.column_rank, images.width,
           half.data() + elastic.column_rank, both, elastic.columns, workspace.shifts_y());
  // No field exceeds 2^24.
  const double unit = std::min(elastic.unit, kMostShift / (1 << 24));
  return {workspace.shifts_x(), workspace.shifts_y(),
          static_cast<float>(unit * (1 << kFractionBits))};
}

// Scaled, sheared, rotated, moved; turned round, since the pixels of the result ask.
Affine draw_affine(const Images& images, const Distortion& distortion, int64_t image) {
  double drawn[8];  // in ±1
  for (uint32_t block = 0; block < 2; ++block) {
    uint32_t words[4] = {block, static_cast<uint32_t>(image), static_cast<uint32_t>(image >> 32),
                         kAffineStream};
    threefry(distortion.key, words);
    for (int i = 0; i < 4; ++i) drawn[4 * block + i] = static_cast<int32_t>(words[i]) * 0x1p-31;
  }
  const double angle = distortion.rotation * drawn[0],
               slant = std::tan(distortion.shear * drawn[1]);
  const double wider = 1 + distortion.scale * drawn[2], higher = 1 + distortion.scale * drawn[3];
  const double cosine = std::cos(angle), sine = std::sin(angle);
  const double middle_x = static_cast<double>(images.width - 1) / 2;
  const double middle_y = static_cast<double>(images.height - 1) / 2;
  const double far = std::min(distortion.translation, 0x1p20);  // anything is outside by then
  const double to_x = middle_x + far * drawn[4], to_y = middle_y + far * drawn[5];
  const double ay = -sine / higher, by = cosine / higher;
  const double ax = (cosine + slant * sine) / wider, bx = (sine - slant * cosine) / wider;
  return fixed_point(images, ax, bx, middle_x - ax * to_x - bx * to_y, ay, by,
                     middle_y - ay * to_x - by * to_y);
}

// What is drawn, as masses at pixels.
struct Moments {
  double mass = 0, x = 0, y = 0;  // the centre
  double slant = 0;               // covariance of x and y by the variance of y
};

Moments moments(const Images& images, const uint8_t* image) {
  // Sums over a row are exact in 32 bits for up to kMostPixels.
  std::vector<double> masses(images.height), sums(images.height);
  Moments result;
  for (int64_t y = 0; y < images.height; ++y) {
    const uint8_t* row = image + y * images.width;
    uint32_t mass = 0, sum = 0;
    for (uint32_t x = 0; x < images.width; ++x) {
      mass += row[x];
      sum += row[x] * x;
    }
    masses[y] = mass;
    sums[y] = sum;
    result.mass += mass;
    result.x += sum;
    result.y += static_cast<double>(mass) * static_cast<double>(y);
  }
  if (result.mass == 0) return result;
  result.x /= result.mass;
  result.y /= result.mass;
  double covariance = 0, variance = 0;
  for (int64_t y = 0; y < images.height; ++y) {
    const double away = static_cast<double>(y) - result.y;
    covariance += away * (sums[y] - result.x * masses[y]);
    variance += away * away * masses[y];
  }
  if (variance > 0) result.slant = covariance / variance;
  return result;
}

// The centre of mass comes to the middle, and rows move against the slant.
Affine upright(const Images& images, const uint8_t* image) {
  const Moments drawn = moments(images, image);
  if (drawn.mass == 0) return fixed_point(images, 1, 0, 0, 0, 1, 0);
  const double middle_x = static_cast<double>(images.width - 1) / 2;
  const double middle_y = static_cast<double>(images.height - 1) / 2;
  return fixed_point(images, 1, drawn.slant, drawn.x - middle_x - drawn.slant * middle_y, 0, 1,
                     drawn.y - middle_y);
}

}  // namespace

void deskew(const Images& images, int max_threads) {
  resample_each(images, {}, max_threads,
                [&](const Kernels<float>&, int64_t, const uint8_t* image, Workspace&) {
                  return Source{upright(images, image), {nullptr, nullptr, 0}};
                });
}

void distort(const Images& images, const Distortion& distortion, int max_threads) {
  resample_each(
      images, distortion.elastic, max_threads,
      [&](const Kernels<float>& kernels, int64_t image, const uint8_t*, Workspace& workspace) {
        Source source{draw_affine(images, distortion, image), {nullptr, nullptr, 0}};
        if (distortion.elastic.rows)
          source.shifts = displacements(kernels, images, distortion, image, workspace);
        return source;
      });
}

}  // namespace fastmlp::cpu
