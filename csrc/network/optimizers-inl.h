// All optimizers. Included inside a target region, after math-inl.h.
#include "network/optimizers/decay-inl.h"
// The optimizers themselves come after what they share.
#include "network/optimizers/adadelta-inl.h"
#include "network/optimizers/adagrad-inl.h"
#include "network/optimizers/adam-inl.h"
#include "network/optimizers/adamax-inl.h"
#include "network/optimizers/nadam-inl.h"
#include "network/optimizers/radam-inl.h"
#include "network/optimizers/rmsprop-inl.h"
#include "network/optimizers/sgd-inl.h"

// Their places are their numbers. To add one: its file, and its name in this list.
using Optimizers = List<SGD, Adam, AdamW, RMSprop, Adagrad, NAdam, RAdam, Adamax, Adadelta>;
