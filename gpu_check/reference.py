"""Independent implementation of AGVM in NumPy, directly from the definitions.

It takes the full gradient of each replica and shares no code with the package.
"""

from dataclasses import dataclass

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass
class ReferenceAGVM:
    """AGVM with SGD or AdamW on the full gradients of all replicas.

    Args:
        parameters: Float64 parameters by name.
        module_of: Module of each parameter.
        optimizer: 'SGD' (momentum 0.9) or 'AdamW'.
        lr: Learning rate.
        weight_decay: Weight decay.
        estimator: 'halves' or 'replicas'.
        interval: Updates between two measurements.
        begin: First active update.
        momentum: Momentum of the multipliers. Defaults to 0.97.
    """

    parameters: Arrays
    module_of: dict[str, str]
    optimizer: str
    lr: float
    weight_decay: float
    estimator: str
    interval: int
    begin: int
    momentum: float = 0.97

    def __post_init__(self) -> None:
        self.parameters = {k: v.copy() for k, v in self.parameters.items()}
        self.multipliers = dict.fromkeys(self.module_of.values(), 1.0)
        self.variances = {}
        self.measured = []
        self.updates = 0
        self.first_moment = {k: np.zeros_like(v) for k, v in self.parameters.items()}
        self.second_moment = dict(self.first_moment)

    def _vector(self, gradients: Arrays, module: str) -> np.ndarray:
        """Return the gradient of a module, as AdamW rescales it at this update.

        Halves are rescaled with their own squares in the second moment.
        """
        parts = []
        for name in self.parameters:
            if self.module_of[name] != module:
                continue
            gradient = gradients[name]
            if self.optimizer == 'AdamW':
                v = self.second_moment[name]
                if self.estimator == 'halves':
                    v = 0.999 * v + 0.001 * gradient**2
                gradient = gradient / (np.sqrt(v) + 1e-8)
            parts.append(gradient.ravel())
        return np.concatenate(parts)

    def noise_averages(self) -> dict[str, tuple[float, float]]:
        """Return the averages of signal and noise by module, in units of an update."""
        if not self.measured:
            return {}
        weights = 0.9 ** np.arange(len(self.measured))[::-1]
        averages = {
            module: np.average([row[module] for row in self.measured], 0, weights)
            for module in self.multipliers
        }
        averages['all'] = sum(averages.values())
        return {name: tuple(values) for name, values in averages.items()}

    def _measure(self, replicas: list[Arrays]) -> None:
        n = len(replicas)
        measured = {}
        self.measured.append(measured)
        for module in self.multipliers:
            if self.estimator == 'halves':
                a, b = (
                    self._vector(_mean(half), module)
                    for half in (replicas[: n // 2], replicas[n // 2 :])
                )
                phi = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                shares = n // 2 / n, (n - n // 2) / n
                noise = (a - b) @ (a - b) / sum(1 / share for share in shares)
                measured[module] = a @ b, noise
            else:
                own = [self._vector(g, module) for g in replicas]
                local = np.mean([g @ g for g in own])
                total = self._vector(_mean(replicas), module)
                total = total @ total
                phi = 2 * (local - total) / ((n - 2) * total + local)
                pairs = [g @ h for g in own for h in own if g is not h]
                noise = np.var(own, axis=0, ddof=1).sum() / n
                measured[module] = np.mean(pairs), noise
            self.variances[module] = phi
        anchor = self.variances['backbone']
        for module, phi in self.variances.items():
            ratio = np.clip((anchor + 1e-6) / (phi + 1e-6), 0.5, 10.0)
            self.multipliers[module] = self.momentum * self.multipliers[module] + (
                1 - self.momentum
            ) * np.sqrt(ratio)

    def step(self, replicas: list[Arrays]) -> None:
        """Perform one update from the gradients by name of each replica."""
        if self.updates >= self.begin and self.updates % self.interval == 0:
            self._measure(replicas)
        self.updates += 1
        for name, gradient in _mean(replicas).items():
            lr = self.lr * self.multipliers[self.module_of[name]]
            p = self.parameters[name]
            if self.optimizer == 'SGD':
                gradient = gradient + self.weight_decay * p
                self.first_moment[name] = 0.9 * self.first_moment[name] + gradient
                self.parameters[name] = p - lr * self.first_moment[name]
            else:
                m = 0.9 * self.first_moment[name] + 0.1 * gradient
                v = 0.999 * self.second_moment[name] + 0.001 * gradient**2
                self.first_moment[name], self.second_moment[name] = m, v
                m_hat = m / (1 - 0.9**self.updates)
                v_hat = v / (1 - 0.999**self.updates)
                p = p - lr * self.weight_decay * p
                self.parameters[name] = p - lr * m_hat / (np.sqrt(v_hat) + 1e-8)


def _mean(replicas: list[Arrays]) -> Arrays:
    return {
        name: np.mean([gradients[name] for gradients in replicas], axis=0)
        for name in replicas[0]
    }
