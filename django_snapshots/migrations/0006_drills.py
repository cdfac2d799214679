from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_snapshots", "0005_undo"),
    ]

    operations = [
        migrations.AlterField(
            model_name="run",
            name="kind",
            field=models.CharField(
                choices=[
                    ("snapshot", "Snapshot"),
                    ("restore", "Restore"),
                    ("undo", "Undo"),
                    ("verify", "Verify"),
                    ("delete", "Delete"),
                    ("prune", "Prune"),
                    ("drill", "Drill"),
                ],
                max_length=16,
            ),
        ),
    ]
