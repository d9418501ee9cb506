// A DLL without a C library still needs an entry point; there is nothing to set up.
extern "C" int __stdcall DllMainCRTStartup(void*, unsigned long, void*) { return 1; }
