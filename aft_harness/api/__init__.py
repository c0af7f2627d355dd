"""The front door: what a notebook or a program calls, with the names, defaults and errors of the command line.

Every function takes a hub id, a folder, or a model and tokenizer that are already loaded, which are left as they were.
The commands are thin over these functions. `import aft_harness` offers all of them without loading torch.
"""
