#include "textflag.h"

// func preemptAsked() bool
//
// A g begins with its stack's bounds, and then its stack guard, which the compiler's prologues compare with the stack
// pointer (cmd/internal/obj/arm64).
TEXT ·preemptAsked(SB), NOSPLIT, $0-1
	MOVD	8(g), R0
	MOVD	16(g), R1
	CMP	R0, R1
	CSET	HI, R2
	MOVB	R2, ret+0(FP)
	RET
