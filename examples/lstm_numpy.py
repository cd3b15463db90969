"""A batched LSTM in numpy: one layer forward, and its backward pass derived by hand.

Shapes: T steps, B sequences, I inputs, H units. Weights as torch has them: W_ih (4H, I), W_hh (4H, H), b (4H,) the sum
of both biases; the gates in order i, f, g, o.

    a = x[t] W_ih^T + h[t-1] W_hh^T + b
    i, f, o = sigmoid(a_i, a_f, a_o)      g = tanh(a_g)
    c[t] = f c[t-1] + i g                 h[t] = o tanh(c[t])

python examples/lstm_numpy.py compares the gradients with finite differences.
"""

import numpy as np


def sigmoid(a):
    """1 / (1 + exp(-a)) without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * a))


def forward(x, W_ih, W_hh, b, h0, c0):
    """x (T, B, I), h0 and c0 (B, H) → h (T, B, H), c (T, B, H), activated gates (T, B, 4H)."""
    T, B, _ = x.shape
    H = h0.shape[1]
    h, c = np.empty((T, B, H), x.dtype), np.empty((T, B, H), x.dtype)
    gates = x @ W_ih.T + b  # the inputs of all steps in one product
    h_prev, c_prev = h0, c0
    for t in range(T):
        a = gates[t]
        a += h_prev @ W_hh.T
        for gate, squash in enumerate((sigmoid, sigmoid, np.tanh, sigmoid)):
            part = slice(gate * H, (gate + 1) * H)
            a[:, part] = squash(a[:, part])
        i, f, g, o = np.split(a, 4, axis=1)
        c[t] = f * c_prev + i * g
        h[t] = o * np.tanh(c[t])
        h_prev, c_prev = h[t], c[t]
    return h, c, gates


def backward(dh, dh_n, dc_n, x, W_ih, W_hh, h0, c0, h, c, gates):
    """Gradients, from dh (T, B, H) at every h and dh_n, dc_n (B, H) at the last state.

    Returns dx (T, B, I), dW_ih (4H, I), dW_hh (4H, H), db (4H,), dh0 (B, H), dc0 (B, H).
    """
    T, B, _ = x.shape
    da = np.empty_like(gates)
    dh_next, dc_next = dh_n.copy(), dc_n.copy()
    for t in reversed(range(T)):
        i, f, g, o = np.split(gates[t], 4, axis=1)
        c_prev = c[t - 1] if t else c0
        tanh_c = np.tanh(c[t])
        dh_t = dh[t] + dh_next
        dc = dc_next + dh_t * o * (1 - tanh_c**2)
        da[t] = np.concatenate(
            [
                dc * g * i * (1 - i),
                dc * c_prev * f * (1 - f),
                dc * i * (1 - g**2),
                dh_t * tanh_c * o * (1 - o),
            ],
            axis=1,
        )
        dh_next, dc_next = da[t] @ W_hh, dc * f
    h_prev = np.concatenate([h0[None], h[:-1]])
    flat = da.reshape(T * B, -1)  # the weight gradients of all steps in one product each
    dW_ih, dW_hh = flat.T @ x.reshape(T * B, -1), flat.T @ h_prev.reshape(T * B, -1)
    return da @ W_ih, dW_ih, dW_hh, flat.sum(0), dh_next, dc_next


def check(rng, T=4, B=3, I=2, H=5, eps=1e-6):
    """The largest difference between a gradient of a random projection of the outputs and central differences."""
    names = ("x", "W_ih", "W_hh", "b", "h0", "c0")
    shapes = ((T, B, I), (4 * H, I), (4 * H, H), (4 * H,), (B, H), (B, H))
    values = dict(zip(names, map(rng.standard_normal, shapes), strict=True))
    dh, dh_n, dc_n = (rng.standard_normal(shape) for shape in ((T, B, H), (B, H), (B, H)))

    def loss():
        h, c, _ = forward(**values)
        return (h * dh).sum() + (h[-1] * dh_n).sum() + (c[-1] * dc_n).sum()

    h, c, gates = forward(**values)
    rest = {name: value for name, value in values.items() if name != "b"}
    gradients = dict(zip(names, backward(dh, dh_n, dc_n, **rest, h=h, c=c, gates=gates), strict=True))
    worst = 0.0
    for name, value in values.items():
        for k in np.ndindex(value.shape):
            old = value[k]
            value[k] = old + eps
            above = loss()
            value[k] = old - eps
            worst = max(worst, abs((above - loss()) / (2 * eps) - gradients[name][k]))
            value[k] = old
    return worst


if __name__ == "__main__":
    print(f"largest error of a gradient: {check(np.random.default_rng(0)):.1e}")
