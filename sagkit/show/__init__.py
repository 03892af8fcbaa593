"""What a person looks at: pictures from arrays, scenes with settings, and boards that move the settings.

`plots` takes arrays only, `scene` holds images with what is known about them, `answers` turns a scene and a setting
into plain data, `scenes` into a still picture. `explore` shows answers to move around in, by `widgets` in a notebook
and by `serve` in a browser tab, with one front end (board.js). `maps` finds places for images, `tables` sets figures in
Markdown.
"""
