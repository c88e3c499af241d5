/* Forward the CBLAS and LAPACK functions that mlx imports to an OpenBLAS whose names have the prefix `scipy_`.
 *
 * scipy's wheel carries such an OpenBLAS. The loader looks in the global scope before it looks in the libraries that mlx
 * was linked with, so this library, loaded with RTLD_GLOBAL before mlx, answers in the place of the reference BLAS.
 * `ringattn_blas_open` must have returned NULL before any other function here is called.
 *
 * LAPACK's arguments are all pointers, followed by the length of each character argument (size_t), which gfortran adds: all of
 * one size in registers and on the stack, so a function is described by how many there are.
 */
#ifdef __linux__
#include <dlfcn.h>
#include <stddef.h>

typedef void *P;
_Static_assert(sizeof(P) == sizeof(size_t), "a hidden length is passed like a pointer");

/* X(name, number of arguments): pointers and hidden lengths. */
#define LAPACK(X) \
    X(sgeev, 16) X(dgeev, 16) X(cgeev, 16) X(sgesdd, 15) X(dgesdd, 15) X(cgesdd, 16) X(ssyevd, 13) X(dsyevd, 13) \
    X(cheevd, 15) X(sgeqrf, 8) X(dgeqrf, 8) X(sorgqr, 9) X(dorgqr, 9) X(sgetrf, 6) X(dgetrf, 6) X(sgetri, 7) \
    X(dgetri, 7) X(spotrf, 6) X(dpotrf, 6) X(strtri, 8) X(dtrtri, 8)

#define TYPES_6 P, P, P, P, P, P
#define TYPES_7 TYPES_6, P
#define TYPES_8 TYPES_7, P
#define TYPES_9 TYPES_8, P
#define TYPES_13 TYPES_9, P, P, P, P
#define TYPES_15 TYPES_13, P, P
#define TYPES_16 TYPES_15, P
#define TAKES_6 P a, P b, P c, P d, P e, P f
#define TAKES_7 TAKES_6, P g
#define TAKES_8 TAKES_7, P h
#define TAKES_9 TAKES_8, P i
#define TAKES_13 TAKES_9, P j, P k, P l, P m
#define TAKES_15 TAKES_13, P n, P o
#define TAKES_16 TAKES_15, P p
#define GIVES_6 a, b, c, d, e, f
#define GIVES_7 GIVES_6, g
#define GIVES_8 GIVES_7, h
#define GIVES_9 GIVES_8, i
#define GIVES_13 GIVES_9, j, k, l, m
#define GIVES_15 GIVES_13, n, o
#define GIVES_16 GIVES_15, p

#define GEMM(name, scalar) \
    static void (*target_##name)(int, int, int, int, int, int, scalar, const void *, int, const void *, int, scalar, void *, int); \
    void cblas_##name(int order, int ta, int tb, int m, int n, int k, scalar alpha, const void *a, int lda, const void *b, \
                      int ldb, scalar beta, void *c, int ldc) { \
        target_##name(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc); \
    }
GEMM(sgemm, float)
GEMM(dgemm, double)
GEMM(cgemm, const void *)

#define FORWARD(name, count) \
    static void (*target_##name)(TYPES_##count); \
    void name##_(TAKES_##count) { target_##name(GIVES_##count); }
LAPACK(FORWARD)

/* Find every function in the library at `path`, which stays loaded. Returns NULL, or why this library cannot be used. */
const char *ringattn_blas_open(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return dlerror();
#define FIND(pointer, symbol) \
    if ((*(void **)&pointer = dlsym(library, symbol)) == NULL) return "it has no " symbol;
#define FIND_LAPACK(name, count) FIND(target_##name, "scipy_" #name "_")
    FIND(target_sgemm, "scipy_cblas_sgemm")
    FIND(target_dgemm, "scipy_cblas_dgemm")
    FIND(target_cgemm, "scipy_cblas_cgemm")
    LAPACK(FIND_LAPACK)
    return NULL;
}

/* Return the address of the sgemm that answers, or NULL before `ringattn_blas_open`. */
void *ringattn_blas_sgemm(void) { return *(void **)&target_sgemm; }
#else
typedef int only_linux_needs_the_shim; /* macOS has Accelerate */
#endif
