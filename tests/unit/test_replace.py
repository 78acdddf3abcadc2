"""A workaround takes a function's place once, and calls the original."""

from types import SimpleNamespace

from nar_plugins.compat.replace import replaces


def test_a_function_is_replaced_once_and_gets_the_original_first():
    calls = []
    owner = SimpleNamespace(twice=lambda x, more=0: 2 * x + more)

    def apply():
        @replaces(owner, "twice")
        def counted(twice, x, **kwargs):
            calls.append(x)
            return twice(x, **kwargs)

    apply()
    first = owner.twice
    apply()
    assert owner.twice is first and owner.twice(3, more=1) == 7 and calls == [3]


def test_a_method_gets_its_object_after_the_original():
    class Owner:
        def name(self):
            return "a"

    @replaces(Owner, "name")
    def louder(name, self):
        return name(self) + "!"

    assert Owner().name() == "a!" and Owner.name.__name__ == "name"
