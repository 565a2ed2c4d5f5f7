// What the library was built from, for library.py.

extern "C" __attribute__((visibility("default"))) const char* rmc_rl_sources() { return RMC_RL_SOURCES; }
