"""Templates that raise, loop or fill the memory end in one line; all others give what transformers gives."""

import contextlib
import resource
import signal
import threading

import pytest

from ser_lightning.data import templates
from ser_lightning.data.templates import TemplateRefused, render_conversations

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.fixture
def render(tiny_tokenizer, monkeypatch):
    """What a template makes of a conversation of four characters."""

    def rendered(template):
        monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
        [text] = render_conversations(tiny_tokenizer, [TURNS])
        return text

    return rendered


def test_a_template_gives_what_transformers_makes_of_it(render, tiny_tokenizer):
    assert render(tiny_tokenizer.chat_template) == tiny_tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert render("{{ 2 * 3 }} {{ dict(**messages[0]).role }}") == "6 user"


def test_where_memory_cannot_be_read_a_template_is_rendered_without_a_limit(render, monkeypatch, tmp_path):
    monkeypatch.setattr(templates, "_STATM", tmp_path / "statm")  # of /proc, which only Linux has
    assert render("{{ 2 * 3 }}") == "6"


REFUSED = {
    "raises": ("{{ raise_exception('no system role') }}", "no system role"),
    "divides by zero": ("{{ 1 / 0 }}", "division by zero"),
    "adds nothing to a text": ("{{ 'a' + none }}", "can only concatenate str"),
    "is no Jinja": ("{% if %}", "Expected an expression"),
    "reads files": ("{% include '/etc/passwd' %}", "no loader"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "fills the memory": ("{{ 'a' * 10000000000 }}", "more than 2 GiB of memory used"),
    "doubles": (
        "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "more than 2 GiB of memory used",
    ),
    "gives too much": ("{{ 'a' * 2000000 }}", "2,000,000 characters for 4 of a conversation"),
    "takes a power": ("{{ 10 ** 100000000 }}", r"the operator \*\*"),
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_cannot_be_rendered_is_one_line(render, template, reason):
    with pytest.raises(
        TemplateRefused, match=f"^chat template refuses a conversation: got .*{reason}.*; use"
    ) as caught:
        render(template)
    assert len(caught.value.problems) == 1


def test_a_template_that_loops_is_ended(render, monkeypatch):
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.05)
    with pytest.raises(TemplateRefused, match="got no end within 0 seconds"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


def test_the_process_keeps_its_own_limits_and_signals(render, tiny_tokenizer):
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    for template in (tiny_tokenizer.chat_template, "{{ 'a' * 10000000000 }}"):
        with contextlib.suppress(TemplateRefused):
            render(template)
        assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
        assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_two_threads_at_once_leave_no_limit_behind():
    before = resource.getrlimit(resource.RLIMIT_AS)
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first():
        with templates._memory_limit(2**31):
            first_is_in.set()
            second_is_in.wait(0.1)  # for as long as it is kept out
        first_is_out.set()

    def second():
        with templates._memory_limit(2**31):
            second_is_in.set()
            first_is_out.wait()

    threads = [threading.Thread(target=target) for target in (first, second)]
    threads[0].start()
    first_is_in.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    after = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert after == before


def test_other_threads_can_render_too(tiny_tokenizer):
    found = []
    thread = threading.Thread(target=lambda: found.extend(render_conversations(tiny_tokenizer, [TURNS])))
    thread.start()
    thread.join()
    assert found == [tiny_tokenizer.apply_chat_template(TURNS, tokenize=False)]
