// A text in the library that names the torch it was compiled against. fastmlp/_extension.py reads
// it from the file: with another torch the library may not load, and then it cannot be asked.

extern "C" __attribute__((used, visibility("default"))) const char fastmlp_build_record[] =
    "fastmlp was built against torch " FASTMLP_TORCH_VERSION;
