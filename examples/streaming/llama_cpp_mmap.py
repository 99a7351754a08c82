"""llama.cpp through llama-cpp-python, its weights mapped from the file; prints JSON.

python llama_cpp_mmap.py model.gguf 12 1 15043 727 445 338
"""

import json
import sys
import time

from llama_cpp import Llama

file, count, *prompt = sys.argv[1:]
start = time.perf_counter()
llama = Llama(file, n_ctx=512, n_threads=2, use_mmap=True, verbose=False)
loaded = time.perf_counter()
tokens, times = [], []
for token in llama.generate([int(n) for n in prompt], temp=0):
    tokens.append(token)
    times.append(time.perf_counter())
    if len(tokens) == int(count):
        break
print(
    json.dumps(
        {
            "load_s": loaded - start,
            "ttft_s": times[0] - loaded,
            "generation_tps": (len(tokens) - 1) / (times[-1] - times[0]),
            "tokens": tokens,
        }
    )
)
