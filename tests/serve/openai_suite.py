"""The official openai client against a running Duet server. usage: openai_suite.py BASE_URL MODEL

Each function case_… is a case; all run against the one server, and the failures are
listed at the end. Greedy decoding of the bundled model makes answers comparable.
"""
import asyncio
import concurrent.futures
import sys
import traceback

import httpx
import openai

BASE, MODEL = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=BASE + "/v1", api_key="sk-test", timeout=60, max_retries=0)
PROMPT = "In the beginning God"
CHAT = [{"role": "user", "content": "Who made the heaven and the earth?"}]


def complete(**more):
    fields = dict(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)
    fields.update(more)
    return client.completions.create(**fields)


def chat(**more):
    fields = dict(model=MODEL, messages=CHAT, max_tokens=12, temperature=0)
    fields.update(more)
    return client.chat.completions.create(**fields)


def refused(call, error, param=None, words=""):
    try:
        call()
    except error as e:
        if param is not None:
            assert e.param == param, f"param is {e.param}, not {param}"
        assert words in str(e), str(e)
        return
    raise AssertionError(f"no {error.__name__}")


# --- models ---
def case_models_list():
    assert [m.id for m in client.models.list().data] == [MODEL]


def case_models_retrieve():
    assert client.models.retrieve(MODEL).object == "model"


def case_models_unknown():
    refused(lambda: client.models.retrieve("none"), openai.NotFoundError)


# --- completions ---
def case_completion_shape():
    r = complete()
    assert r.object == "text_completion" and r.id.startswith("cmpl-") and r.model == MODEL
    assert r.choices[0].index == 0 and r.choices[0].text


def case_completion_length():
    r = complete(max_tokens=5, extra_body={"ignore_eos": True})
    assert r.choices[0].finish_reason == "length" and r.usage.completion_tokens == 5


def case_completion_usage_adds_up():
    u = complete().usage
    assert u.total_tokens == u.prompt_tokens + u.completion_tokens and u.prompt_tokens > 0


def case_completion_greedy_repeats():
    assert complete().choices[0].text == complete().choices[0].text


def case_completion_batch_of_prompts():
    r = complete(prompt=[PROMPT, "And God said"])
    assert [c.index for c in r.choices] == [0, 1]
    assert r.choices[0].text == complete().choices[0].text


def case_completion_token_ids():
    ids = httpx.post(BASE + "/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    assert complete(prompt=ids).choices[0].text == complete().choices[0].text


def case_completion_batch_of_token_ids():
    ids = httpx.post(BASE + "/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    assert len(complete(prompt=[ids, ids]).choices) == 2


def case_completion_echo():
    r = complete(echo=True)
    assert r.choices[0].text == PROMPT + complete().choices[0].text


def case_completion_n():
    r = complete(n=3, temperature=1, seed=5)
    assert [c.index for c in r.choices] == [0, 1, 2]
    assert len({c.text for c in r.choices}) > 1


def case_completion_seed_repeats():
    a = complete(temperature=1, seed=11).choices[0].text
    assert a == complete(temperature=1, seed=11).choices[0].text


def case_completion_other_seed_differs():
    texts = {complete(temperature=1, seed=s, max_tokens=20).choices[0].text for s in range(4)}
    assert len(texts) > 1


def case_completion_stop():
    text = complete(max_tokens=20).choices[0].text
    word = text.split()[2]
    r = complete(max_tokens=20, stop=word)
    assert r.choices[0].finish_reason == "stop" and word not in r.choices[0].text
    assert text.startswith(r.choices[0].text)


def case_completion_stop_list():
    text = complete(max_tokens=20).choices[0].text
    r = complete(max_tokens=20, stop=["never there", text.split()[1]])
    assert r.choices[0].finish_reason == "stop"


def case_completion_stop_token():
    ids = httpx.post(BASE + "/tokenize", json={"prompt": complete(echo=True).choices[0].text}).json()["tokens"]
    r = complete(max_tokens=20, extra_body={"stop_token_ids": [ids[-1]]})
    assert r.choices[0].finish_reason == "stop"


def case_completion_logprobs():
    lp = complete(logprobs=3).choices[0].logprobs
    assert len(lp.tokens) == len(lp.token_logprobs) == len(lp.top_logprobs) == len(lp.text_offset)
    assert all(x <= 0 for x in lp.token_logprobs)
    assert all(max(top.values()) == chosen for top, chosen in zip(lp.top_logprobs, lp.token_logprobs))


def case_completion_logprobs_text():
    c = complete(logprobs=1).choices[0]
    assert "".join(c.logprobs.tokens) == c.text


def case_completion_echo_logprobs():
    lp = complete(echo=True, logprobs=1, max_tokens=1).choices[0].logprobs
    assert lp.token_logprobs[0] is None and all(x is not None for x in lp.token_logprobs[1:])


def case_completion_logit_bias():
    ids = httpx.post(BASE + "/tokenize", json={"prompt": " the", "add_special_tokens": False}).json()["tokens"]
    r = complete(logit_bias={str(ids[-1]): 100}, max_tokens=3)
    assert len(set(r.choices[0].text.split())) == 1, r.choices[0].text


def case_completion_penalties():
    assert complete(frequency_penalty=2, presence_penalty=1, max_tokens=30).choices[0].text != \
        complete(max_tokens=30).choices[0].text


def case_completion_top_p_and_top_k():
    a = complete(temperature=1, seed=3, extra_body={"top_k": 1}).choices[0].text
    assert a == complete().choices[0].text
    assert complete(temperature=1, top_p=1e-6, seed=4).choices[0].text == complete().choices[0].text


def case_completion_unicode():
    r = complete(prompt="Ägypten – 天地 🕊", max_tokens=8)
    assert r.choices[0].text is not None


# --- streams ---
def case_completion_stream_is_the_same():
    whole = complete(max_tokens=20).choices[0].text
    chunks = list(complete(max_tokens=20, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert all(c.choices[0].finish_reason is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def case_completion_stream_usage():
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])


def case_completion_stream_n():
    texts = {0: "", 1: ""}
    for c in complete(n=2, temperature=1, seed=7, stream=True):
        texts[c.choices[0].index] += c.choices[0].text
    r = complete(n=2, temperature=1, seed=7)
    assert [c.text for c in r.choices] == [texts[0], texts[1]]


def case_completion_stream_stop():
    text = complete(max_tokens=20).choices[0].text
    word = text.split()[2]
    chunks = list(complete(max_tokens=20, stop=word, stream=True))
    assert word not in "".join(c.choices[0].text for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def case_completion_stream_logprobs():
    whole = complete(logprobs=2).choices[0].logprobs
    tokens = []
    for c in complete(logprobs=2, stream=True):
        if c.choices[0].logprobs:
            tokens += c.choices[0].logprobs.token_logprobs
    assert tokens == whole.token_logprobs


def case_stream_closed_early():
    stream = complete(max_tokens=2000, stream=True, extra_body={"ignore_eos": True})
    for _ in stream:
        stream.close()
        break
    assert complete().choices[0].text


# --- chat ---
def case_chat_shape():
    r = chat()
    assert r.object == "chat.completion" and r.id.startswith("chatcmpl-")
    assert r.choices[0].message.role == "assistant" and r.choices[0].message.content is not None
    assert r.choices[0].message.tool_calls is None and r.choices[0].message.refusal is None


def case_chat_usage():
    u = chat().usage
    assert u.total_tokens == u.prompt_tokens + u.completion_tokens


def case_chat_max_completion_tokens():
    r = client.chat.completions.create(model=MODEL, messages=CHAT, max_completion_tokens=4, temperature=0,
                                       extra_body={"ignore_eos": True})
    assert r.usage.completion_tokens == 4


def case_chat_system_and_history():
    r = chat(messages=[{"role": "system", "content": "Be brief."}, *CHAT,
                       {"role": "assistant", "content": "God."}, {"role": "user", "content": "When?"}])
    assert r.usage.prompt_tokens > chat().usage.prompt_tokens


def case_chat_text_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": CHAT[0]["content"]}]}]
    assert chat(messages=parts).choices[0].message.content == chat().choices[0].message.content


def case_chat_stream_is_the_same():
    whole = chat(max_tokens=20).choices[0].message.content
    chunks = list(chat(max_tokens=20, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")


def case_chat_stream_usage():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0


def case_chat_n_and_seed():
    a = chat(n=2, temperature=1, seed=9)
    b = chat(n=2, temperature=1, seed=9)
    assert [c.message.content for c in a.choices] == [c.message.content for c in b.choices]


def case_chat_stop():
    text = chat(max_tokens=30).choices[0].message.content
    word = text.split()[1]
    r = chat(max_tokens=30, stop=[word])
    assert r.choices[0].finish_reason == "stop" and word not in r.choices[0].message.content


def case_chat_logprobs():
    r = chat(logprobs=True, top_logprobs=2, max_tokens=4, extra_body={"ignore_eos": True})
    content = r.choices[0].logprobs.content
    assert len(content) == 4 and all(len(t.top_logprobs) == 2 for t in content)
    assert bytes(b for t in content for b in t.bytes).decode() == r.choices[0].message.content


def case_chat_stream_helper():
    # The helper takes an answer that ends with its length for a failure: end it with a stop.
    word = chat(max_tokens=30).choices[0].message.content.split()[1]
    fields = dict(model=MODEL, messages=CHAT, max_tokens=30, temperature=0, stop=[word])
    with client.chat.completions.stream(**fields) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == chat(max_tokens=30, stop=[word]).choices[0].message.content


# --- errors ---
def case_error_model():
    refused(lambda: complete(model="none"), openai.NotFoundError, "model")


def case_error_max_tokens():
    refused(lambda: complete(max_tokens=-1), openai.BadRequestError, "max_tokens")


def case_error_too_long():
    refused(lambda: complete(max_tokens=10**7), openai.BadRequestError, "max_tokens")


def case_error_temperature():
    refused(lambda: complete(temperature=-1), openai.BadRequestError, "temperature")


def case_error_top_p():
    refused(lambda: complete(top_p=2), openai.BadRequestError, "top_p")


def case_error_best_of():
    refused(lambda: complete(best_of=2), openai.BadRequestError, "best_of")


def case_error_suffix():
    refused(lambda: complete(suffix="end"), openai.BadRequestError, "suffix")


def case_error_tools():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    refused(lambda: chat(tools=[tool]), openai.BadRequestError, "tools")


def case_error_response_format():
    refused(lambda: chat(response_format={"type": "json_object"}), openai.BadRequestError, "response_format")


def case_error_image():
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    refused(lambda: chat(messages=image), openai.BadRequestError)


def case_error_unknown_field():
    refused(lambda: complete(extra_body={"nonsense": 1}), openai.BadRequestError, "nonsense")


def case_error_no_messages():
    refused(lambda: chat(messages=[]), openai.BadRequestError, "messages")


def case_error_key():
    other = openai.OpenAI(base_url=BASE + "/v1", api_key="wrong", max_retries=0)
    refused(lambda: other.models.list(), openai.AuthenticationError)


def case_error_embeddings():
    refused(lambda: client.embeddings.create(model=MODEL, input="a"), openai.NotFoundError)


def case_error_does_not_stop_the_server():
    refused(lambda: complete(prompt=[]), openai.BadRequestError, "prompt")
    assert complete().choices[0].text


# --- many at once ---
def case_concurrent_threads():
    alone = complete(max_tokens=16).choices[0].text
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda _: complete(max_tokens=16).choices[0].text, range(32)))
    assert set(texts) == {alone}


def case_concurrent_async_streams():
    async def one(async_client, seed):
        stream = await async_client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=16, temperature=1,
                                                       seed=seed, stream=True)
        return "".join([c.choices[0].text async for c in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=BASE + "/v1", api_key="sk-test", max_retries=0) as async_client:
            return await asyncio.gather(*[one(async_client, s % 8) for s in range(24)])

    texts = asyncio.run(all_of_them())
    assert texts[:8] == texts[8:16] == texts[16:], "the same seeds gave other texts"


def case_concurrent_chat_and_completions():
    a, b = chat().choices[0].message.content, complete().choices[0].text
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        chats = [pool.submit(lambda: chat().choices[0].message.content) for _ in range(8)]
        plain = [pool.submit(lambda: complete().choices[0].text) for _ in range(8)]
        assert all(f.result() == a for f in chats) and all(f.result() == b for f in plain)


def main():
    cases = [(n, f) for n, f in globals().items() if n.startswith("case_")]
    failed = []
    for name, case in cases:
        try:
            case()
        except Exception:
            failed.append(name)
            print(f"--- {name}\n{traceback.format_exc()}")
    print(f"{len(cases) - len(failed)} of {len(cases)} cases passed with openai {openai.__version__}")
    if failed:
        sys.exit("failed: " + ", ".join(failed))


main()
