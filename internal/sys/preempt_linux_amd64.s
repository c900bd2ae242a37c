#include "textflag.h"

// func preemptAsked() bool
//
// A g begins with its stack's bounds, and then its stack guard, which the compiler's prologues compare with the stack
// pointer (cmd/internal/obj/x86).
TEXT ·preemptAsked(SB), NOSPLIT, $0-1
	MOVQ	(TLS), AX
	MOVQ	16(AX), CX
	CMPQ	CX, 8(AX)
	SETHI	ret+0(FP)
	RET
