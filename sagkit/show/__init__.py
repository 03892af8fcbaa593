"""What a person looks at: pictures from arrays, scenes from settings, and widgets that move the settings.

`plots` takes arrays only, `scenes` turns a batch and settings into a picture, `widgets` are controls over scenes,
`tables` sets figures in Markdown.
"""
