"""The plugin host: finds plugins, loads each as a generation of its own, calls them, and keeps the rest alive.

`discovery`
    which plugins are installed, read without importing them
`generation`
    one loaded snapshot of a plugin's code, with every refusal that can be made before it runs
`dispatch`
    the calling of hooks: deadlines, checked answers, failures that name the plugin
"""
