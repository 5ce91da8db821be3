"""An engine of NumPy for a model of no layers: softmax regression over bigrams, with the embedding of a token as features.

A Llama without layers is ``logits = head(norm(embedding(token)))``: stock, and its gradient fits on a screen.
"""

import resource
from itertools import pairwise

import numpy as np
import torch
from alignkit import Computed, EngineModel, OutsideEngine
from alignkit.errors import ModelError

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class BigramEngine(OutsideEngine):
    name = "bigram"
    needs = frozenset({"reference", "start", "reward"})
    optimizers = ("adamw_torch", "sgd")
    unused = {"model.dtype": "it computes in float32", "model.quantization": "it has no quantized layers"}

    def open(self, loaded, config):
        if {name for name, _ in loaded.model.named_parameters()} != {EMBEDDING, NORM, HEAD}:
            raise ModelError("run.engine bigram trains Llamas without layers, and all of their weights")
        return Bigram(loaded.model)


class Bigram(EngineModel):
    scorer = "softmax regression"
    precision = {"weights": "float32", "products": "float32"}

    def __init__(self, model):
        self.w = {name: p.detach().float().numpy().copy() for name, p in model.named_parameters()}
        self.eps = model.config.rms_norm_eps
        self.clear()

    # ------------------------------------------------------------------ scores

    def _forward(self, ids, w):
        x = w[EMBEDDING][ids]
        r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps)
        h = x * r * w[NORM]
        return x, r, h, h @ w[HEAD].T

    def compute(self, examples, wanted):
        pairs, prompts = [], []
        for e in examples:
            for k, completion in enumerate(e.completions):
                mask = e.masks[k] if e.masks else [True] * len(completion)
                row = zip([e.prompt[-1], *completion[:-1]], completion, mask, strict=True)
                pairs += [(a, b) for a, b, scored in row if scored]
            prompts += list(pairwise(e.prompt)) if wanted.prompt else []
        before, after = np.array(pairs + prompts).reshape(-1, 2).T
        x, r, h, z = self._forward(before, self.start if wanted.reference else self.w)
        z = z / wanted.temperature
        top = z.max(-1, keepdims=True)
        logp = z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))
        p, at = np.exp(logp), np.arange(len(after))
        entropy = -(p * logp).sum(-1)
        n = len(pairs)

        def pull(logps, prompt_logps, certain):
            c = np.concatenate([logps.numpy(), prompt_logps.numpy()])
            dz = -p * c[:, None]
            dz[at, after] += c
            if certain is not None:  # dH/dz = -p (log p + H)
                dz[:n] -= certain.numpy()[:, None] * p[:n] * (logp[:n] + entropy[:n, None])
            dz /= wanted.temperature
            dh = dz @ self.w[HEAD]
            d = dh * self.w[NORM]
            self.g[HEAD] += dz.T @ h
            self.g[NORM] += (dh * x * r).sum(0)
            np.add.at(self.g[EMBEDDING], before, r * d - x * r**3 * (x * d).mean(-1, keepdims=True))

        logps = torch.from_numpy(logp[at, after].astype(np.float32))
        certain = torch.from_numpy(entropy[:n].astype(np.float32)) if wanted.entropy else None
        return Computed(logps[:n], logps[n:], certain, pull if wanted.grad else None)

    def logits(self, ids, mask, cache=None):
        return torch.from_numpy(self._forward(ids.numpy(), self.w)[-1])

    # ------------------------------------------------------------------ training

    def begin(self, arguments, decayed):
        self.a, self.decayed = arguments, set(decayed)
        self.count, self.m, self.v = 0, *({k: np.zeros_like(x) for k, x in self.w.items()} for _ in "mv")

    def gradient_norm(self):
        return float(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in self.g.values())))

    def step(self, learning_rate, scale):
        a, self.count = self.a, self.count + 1
        for k, w in self.w.items():
            g, decay = self.g[k] * np.float32(scale), a.weight_decay * (k in self.decayed)
            if a.optim == "sgd":
                self.w[k] = w - learning_rate * (g + decay * w)
                continue
            self.m[k] = a.adam_beta1 * self.m[k] + (1 - a.adam_beta1) * g
            self.v[k] = a.adam_beta2 * self.v[k] + (1 - a.adam_beta2) * g * g
            m, v = self.m[k] / (1 - a.adam_beta1**self.count), self.v[k] / (1 - a.adam_beta2**self.count)
            self.w[k] = w * (1 - learning_rate * decay) - learning_rate * m / (np.sqrt(v) + a.adam_epsilon)
        self.clear()

    def clear(self):
        self.g = {k: np.zeros_like(x) for k, x in self.w.items()}

    def keep_start(self):
        self.start = dict(self.w)

    # ------------------------------------------------------------------ weights and state

    def weights(self):
        return {k: torch.from_numpy(x.copy()) for k, x in self.w.items()}

    def load_weights(self, weights):
        self.w = {k: x.numpy().copy() for k, x in weights.items()}

    def state(self):
        m, v = ({k: torch.from_numpy(x.copy()) for k, x in one.items()} for one in (self.m, self.v))
        return {"count": self.count, "m": m, "v": v}

    def load_state(self, state):
        self.count = state["count"]
        self.m, self.v = ({k: x.numpy().copy() for k, x in state[one].items()} for one in "mv")

    def memory_gb(self):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
