"""Conformance laws: what a method's card promises, as functions that any method can be put to.

    from segue.laws import suite, worlds
    suite.check("lookahead", worlds.network_world("llama"))     # a method of the catalog
    suite.check(MyMethod, worlds.toy_world())                   # a class of your own

A law raises LawBroken (an AssertionError) and otherwise returns what it saw.
"""
