"""Version folders of strangers: whatever their manifests and files say, nothing outside the folder is read."""

from hostile.conftest import small_video


def test_the_folder_that_nobody_has_changed_makes_a_video_and_reads_nothing_outside(watched, stranger, tmp_path):
    ended = watched("ltx-run", *small_video(stranger.folder))
    assert ended.code == 0, ended.err
    assert (tmp_path / "work" / "fox.mp4").stat().st_size > 0
    assert ended.outside(stranger.folder, tmp_path / "work") == set()


def test_the_watch_sees_a_file_outside_that_a_run_is_told_to_read(watched, stranger, tmp_path):
    ended = watched("ltx-run", *small_video(stranger.folder), "--image", stranger.outside / "secret.bin")
    assert str(stranger.outside / "secret.bin") in ended.outside(stranger.folder, tmp_path / "work")
