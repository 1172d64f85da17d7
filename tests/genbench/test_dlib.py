"""Our scorer of sync beside dlib's 68 landmarks, which know nothing of it: how far the inner lips are apart follows how loud the audio is.

Needs the packages dlib-bin and, for the landmarks' weights, Debian's libdlib-data; skipped without.
"""
