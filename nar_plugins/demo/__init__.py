"""``nar-demo``: a local page on which models translate a sentence, pass by pass (``docs/demo.md``)."""
