"""The one seam to transformers: whatever Shoal uses of it comes through here, and nowhere else.

Each module holds one thing that we rely on, says in its first lines what that is, and looks at what can be
seen of it when it is first imported: names, arguments, members. So a transformers that does not fit is told
before a model is loaded, by an error that says which version is here and what to type. What shows only when
it runs, ``tests/models/seam`` holds, thing by thing, for every version of ``versions.SUPPORTED``.

=============  ========================================================================================
``versions``   which version is here, and which are supported
``contract``   how a change of transformers is told
``config``     a model's config, by its type
``model``      the class for a config, and the arguments of its forward
``cache``      what keeps the keys, values and states of a sequence, block by block
``loading``    the loader: tensors that we hand it, a model that we change before it is filled
``seq2seq``    models with an encoder and a decoder: their classes, stacks and caches
``split``      the loader over several processes: the plan of each family
``quantizer``  the loader's door for quantisers
``experts``    the forward of a sparse layer's experts, which can be ours
``layers``     which modules are linear layers
``rotary``     rotary embeddings, and whether they depend on the length of the sequence
``gguf``       the reader of GGUF files
``tokenizer``  tokenizers
``vision``     models that look at images: their towers, image processors and masks
``logging``    what transformers prints
=============  ========================================================================================
"""
