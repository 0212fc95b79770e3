"""Operations on tensors that are computed in the faster of several ways."""
