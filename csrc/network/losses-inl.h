// All losses. Included inside a target region, after math-inl.h.
#include "network/losses/classes-inl.h"
#include "network/losses/elementwise-inl.h"
// The losses themselves come after what they share.
#include "network/losses/bce_with_logits-inl.h"
#include "network/losses/cross_entropy-inl.h"
#include "network/losses/gaussian_nll-inl.h"
#include "network/losses/huber-inl.h"
#include "network/losses/kl_div-inl.h"
#include "network/losses/l1-inl.h"
#include "network/losses/mse-inl.h"
#include "network/losses/nll-inl.h"
#include "network/losses/poisson_nll-inl.h"
#include "network/losses/smooth_l1-inl.h"

// Their places are their numbers. To add one: its file, and its name in this list.
using Losses =
    List<CrossEntropyLoss, CrossEntropyLossOfProbabilities, MSELoss, BCEWithLogitsLoss, L1Loss,
         SmoothL1Loss, HuberLoss, NLLLoss, KLDivLoss, PoissonNLLLoss, GaussianNLLLoss>;
