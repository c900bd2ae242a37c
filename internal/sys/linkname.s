// The declaration of canSpin has no body; this file tells the compiler that it is elsewhere.
