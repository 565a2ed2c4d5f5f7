// The checksum of the sources that the library was built from. library.py compares it with the sources beside it.

extern "C" __attribute__((visibility("default"))) const char* rmc_rl_sources() { return RMC_RL_SOURCES; }
