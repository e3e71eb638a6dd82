"""`python app.py`: settings, engine, saved chats, page, server. `python app.py --help` lists the options.

Everything is in `playground.ui.launch`, which `playground serve` uses too; this file exists because Spaces and people
look for it.
"""

from playground.ui.launch import main

if __name__ == "__main__":
    main()
